-- Returns which role an oid is, in any database: its server's identifier and the oid. Renaming the role does not change
-- it; a role that is made again under the same name has another one.
-- Internal to whatever records who owns a function, and to _require_owner. Takes no locks.
--
-- Where the server does not tell its identifier, there is none before the slash: see _server_id.
CREATE FUNCTION inturn._role_id(role oid) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT format('%s/%s', inturn._server_id(), role)
$$;
COMMENT ON FUNCTION inturn._role_id IS 'Internal: which role an oid is, in any database.';
