-- Wakes those who wait for a key, if anybody does. Internal to whatever moves a key, or holds it, but for a turn's
-- usual end, which looks for many keys in a statement that it has anyway: see finish.
--
-- The caller has locked the key's ticket, or its row in key_sequence, before this statement: so whoever announces the
-- wait later than it looks finds the lock, or what was committed (see wait_state). Takes no locks.
CREATE FUNCTION inturn._wake_waiters(topic text, key text) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
BEGIN
    IF (SELECT true FROM inturn.waiter w
        WHERE w.topic = _wake_waiters.topic AND w.key = _wake_waiters.key AND w.until > now() LIMIT 1) THEN
        PERFORM inturn._notify_waiters(topic, ARRAY[key]);
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._wake_waiters IS 'Internal: wakes those who wait for a key.';
