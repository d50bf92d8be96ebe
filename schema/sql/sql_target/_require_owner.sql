-- Refuses a function that belongs to somebody else than when it was set as what is to be called. Internal to the
-- appliers.
--
-- what: what names it. owner, owner_id: who owned it then, by name and by _role_id; NULL: nobody knows, so it was never
-- set by a function of ours. to_do: how to set it again.
-- It is the same role when the id is, whatever its name is now; and when name and oid are: pg_upgrade keeps both, and
-- makes another server. A role of the same name that was made again is another one. In a copy on another server nobody
-- can tell, until inturn upgrade has recorded it there, see _record_owners. Takes no locks. Raises IT013.
CREATE FUNCTION inturn._require_owner(what text, function regprocedure, owner text, owner_id text,
                                      to_do text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    now_owned_by constant oid := (SELECT p.proowner FROM pg_proc p WHERE p.oid = function::oid);
    name constant text := pg_get_userbyid(now_owned_by);
    same_oid constant boolean := split_part(owner_id, '/', 2) = now_owned_by::text;
    moved boolean;
BEGIN
    -- The server's identifier is read from a file: mostly the name says enough.
    IF same_oid AND (owner = name OR owner_id = inturn._role_id(now_owned_by) AND owner_id NOT LIKE '/%') THEN
        RETURN;
    END IF;
    moved := owner = name AND split_part(owner_id, '/', 1) <> split_part(inturn._role_id(now_owned_by), '/', 1);
    RAISE EXCEPTION USING ERRCODE = 'IT013',
        MESSAGE = format('%s is not called: %s belongs to %I now, and %s', what, function, name,
                         CASE WHEN owner IS NULL OR owner_id IS NULL
                                  THEN 'to whom it belonged when it was set is not known'
                              WHEN moved THEN 'was set on another server, whose roles are others'
                              WHEN owner = name THEN 'belonged to another role of this name when it was set'
                              ELSE format('belonged to %I when it was set', owner) END),
        HINT = CASE WHEN moved THEN 'After a restore or a move, let who owns the schema run: inturn upgrade. Or' ELSE
                    'Look at what it does now. Then' END
                        || format(' whoever has inturn_admin sets it again: %s', to_do);
END
$$;
COMMENT ON FUNCTION inturn._require_owner IS
    'Internal to the appliers: refuses a function that belongs to somebody else than when it was set.';
