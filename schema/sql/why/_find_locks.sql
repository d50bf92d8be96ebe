-- Returns whether the rows of a key that is there are locked: by an applier, an operator or a caller. Internal.
--
-- Locks what is not locked, skipping the rest, and lets go of it at once: callers wait for that as long as it takes to
-- roll back. Where that cannot be done (read-only, or not at READ COMMITTED), only locks whose holder is known count.
CREATE FUNCTION inturn._find_locks(topic text, key text, OUT on_cursor boolean, OUT on_sequence boolean)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    ticket_epoch bigint; -- of its ticket; an idle key has none
BEGIN
    IF current_setting('transaction_read_only')::boolean
        OR current_setting('transaction_isolation') <> 'read committed' THEN
        on_cursor := EXISTS (SELECT FROM inturn._find_locker(topic, key) l
                             WHERE l.relation = 'inturn.ticket'::regclass
                               AND inturn._lock_holder(l.locker, l.relation) IS NOT NULL);
        on_sequence := EXISTS (SELECT FROM inturn.key_sequence s
                               WHERE s.topic = _find_locks.topic AND s.key = _find_locks.key
                               AND inturn._lock_holder(s.xmax, 'inturn.key_sequence') IS NOT NULL);
        RETURN;
    END IF;
    SELECT t.epoch INTO ticket_epoch FROM inturn.key_cursor c
    JOIN inturn.ticket t ON t.topic = c.topic AND t.key = c.key AND t.epoch = c.epoch
    WHERE c.topic = _find_locks.topic AND c.key = _find_locks.key;
    PERFORM FROM inturn.ticket t
    WHERE t.topic = _find_locks.topic AND t.key = _find_locks.key AND t.epoch = ticket_epoch FOR UPDATE SKIP LOCKED;
    on_cursor := ticket_epoch IS NOT NULL AND NOT FOUND;
    PERFORM FROM inturn.key_sequence s
    WHERE s.topic = _find_locks.topic AND s.key = _find_locks.key FOR UPDATE SKIP LOCKED;
    on_sequence := NOT FOUND;
    RAISE EXCEPTION USING ERRCODE = 'IT000';
EXCEPTION WHEN SQLSTATE 'IT000' THEN
    NULL; -- the variables keep what was found
END
$$;
COMMENT ON FUNCTION inturn._find_locks IS 'Internal: whether the rows of a key are locked.';
