-- The oldest revision whose appliers and command line go on working on this one. A revision that breaks with them
-- replaces it:
-- see docs/explanation/upgrades.md.
CREATE VIEW inturn.compatible_since AS
SELECT '0001'::text AS version_num;
COMMENT ON VIEW inturn.compatible_since IS 'The oldest revision whose appliers this one serves.';
