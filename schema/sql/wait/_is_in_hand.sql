-- Says whether a transaction has locked a row that was still running for the caller's snapshot. Internal to wait_state.
-- Takes no locks.
--
-- locker: the row's xmax, which shows every lock, whatever the snapshot; of a lock taken under a savepoint, while that
-- runs.
CREATE FUNCTION inturn._is_in_hand(locker xid) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    snapshot constant pg_snapshot := pg_current_snapshot();
    next constant bigint := pg_snapshot_xmax(snapshot)::text::bigint;
    -- A row has the lower half of it.
    behind constant bigint := ((next - locker::text::bigint + 2147483648) % 4294967296 + 4294967296) % 4294967296
        - 2147483648;
    whole xid8;
BEGIN
    IF locker::text = '0' OR behind > next - 3 THEN
        RETURN false;
    ELSIF behind <= 0 THEN
        RETURN true; -- it began after the snapshot
    END IF;
    whole := (next - behind)::text::xid8;
    RETURN NOT pg_visible_in_snapshot(whole, snapshot) OR coalesce(pg_xact_status(whole) = 'in progress', false);
END
$$;
COMMENT ON FUNCTION inturn._is_in_hand IS
    'Internal to wait_state: whether a row is locked by a transaction that was running.';
