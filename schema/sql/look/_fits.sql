-- Says whether an applier that knows this revision of the schema can work on the one that is installed. Internal. Takes
-- no locks.
--
-- revision: NULL for what runs in the database itself, which always can.
CREATE FUNCTION inturn._fits(revision text) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT revision IS NULL OR revision BETWEEN c.version_num AND v.version_num
FROM inturn.compatible_since c CROSS JOIN inturn.schema_version v
$$;
COMMENT ON FUNCTION inturn._fits IS 'Internal: whether an applier of a revision can work on the one that is installed.';
