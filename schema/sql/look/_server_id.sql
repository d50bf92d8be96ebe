-- Returns the server's own identifier, NULL where it does not tell. Internal. Takes no locks.
--
-- A standby, and a server that is recovered from its files, have the identifier of their origin. A managed server may
-- not tell its own.
CREATE FUNCTION inturn._server_id() RETURNS bigint
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (SELECT c.system_identifier FROM pg_control_system() c);
EXCEPTION WHEN insufficient_privilege OR feature_not_supported OR undefined_function THEN
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION inturn._server_id IS 'Internal: the server''s own identifier.';
