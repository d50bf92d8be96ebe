-- Starts a lease as _begin_lease does. When that fails, the key is put off (see _put_off) and NULL returned, so that
-- the others of its claim go on; also where it lost against another transaction, which it might do each time. Internal
-- to the claims by lease.
--
-- Locks what _begin_lease locks. Raises errors that no key is to blame for: 55P03 (a lock_timeout), 53100 (the disk is
-- full).
CREATE FUNCTION inturn._try_lease(
    settings inturn.topic, key text, applied_seq bigint, epoch bigint, lease interval, applier text
) RETURNS inturn.key_cursor
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    problem text;
BEGIN
    RETURN inturn._begin_lease(settings, key, applied_seq, epoch, lease, applier);
EXCEPTION WHEN OTHERS THEN
    IF SQLSTATE IN ('53100', '55P03') THEN
        RAISE;
    END IF;
    GET STACKED DIAGNOSTICS problem = MESSAGE_TEXT;
    PERFORM inturn._put_off(c, 'it could not be claimed: ' || problem, SQLSTATE)
    FROM inturn._find_cursor(settings.name, _try_lease.key) c;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION inturn._try_lease IS
    'Internal to the claims by lease: starts a lease on a key, or puts the key off.';
