-- The revision of the schema, which appliers and the command line compare with the one that they serve.
CREATE VIEW inturn.schema_version AS
SELECT inturn._revision() AS version_num;
COMMENT ON VIEW inturn.schema_version IS 'The revision of the schema.';
