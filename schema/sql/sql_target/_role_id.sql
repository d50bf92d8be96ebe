-- Returns which role an oid is, in any database: its server's identifier and the oid. Renaming the role does not change
-- it; a role that is made again under the same name has another one.
-- Internal to whatever records who owns a function, and to _require_owner. Takes no locks.
--
-- A standby, and a server that is recovered from its files, have the identifier of their origin. A managed server may
-- not tell its own: then there is none before the slash.
CREATE FUNCTION inturn._role_id(role oid) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN format('%s/%s', (SELECT c.system_identifier FROM pg_control_system() c), role);
EXCEPTION WHEN insufficient_privilege OR feature_not_supported OR undefined_function THEN
    RETURN format('/%s', role);
END
$$;
COMMENT ON FUNCTION inturn._role_id IS 'Internal: which role an oid is, in any database.';
