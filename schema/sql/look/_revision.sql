-- Returns the revision of the schema. Internal to the view schema_version. Takes no locks.
--
-- A function and no row: whatever copies the schema copies it (a dump of the schema alone, one without comments or
-- privileges, a restore of any format), and no publication copies it into a schema that has it already. Each
-- revision replaces it: see schema/revisions/walk.py.
CREATE FUNCTION inturn._revision() RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT '0001'
$$;
COMMENT ON FUNCTION inturn._revision IS 'Internal to the view schema_version: the revision of the schema.';
