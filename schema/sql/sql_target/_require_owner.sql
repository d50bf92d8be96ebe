-- Refuses a function that belongs to somebody else than when it was set as what is to be called. Internal to the
-- appliers.
--
-- what: what names it. owner: who owned it then; NULL: nobody knows, so it was never set by a function of ours. to_do:
-- how to set it again. By name, so that a copy of the database on another server has the same owners. Takes no locks.
-- Raises IT013.
CREATE FUNCTION inturn._require_owner(what text, function regprocedure, owner text, to_do text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    now_owned_by constant text := (SELECT pg_get_userbyid(p.proowner) FROM pg_proc p WHERE p.oid = function::oid);
BEGIN
    IF now_owned_by IS DISTINCT FROM owner THEN
        RAISE EXCEPTION USING ERRCODE = 'IT013',
            MESSAGE = format('%s is not called: %s belongs to %I now, and %s', what, function, now_owned_by,
                             CASE WHEN owner IS NULL THEN 'to whom it belonged when it was set is not known'
                                  ELSE format('belonged to %I when it was set', owner) END),
            HINT = format('Look at what it does now. Then whoever has inturn_admin sets it again: %s', to_do);
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._require_owner IS 'Internal to the appliers: refuses a function that belongs to somebody else than when it was set.';
