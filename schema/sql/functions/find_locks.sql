-- Returns whether the rows of a key that is there are locked: by an applier, an operator or a caller. Internal.
--
-- Locks what is not locked, skipping the rest, and lets go of it at once: callers wait for that as long as it takes to
-- roll back. Where that cannot be done (read-only, or not at READ COMMITTED), only locks whose holder is known count.
CREATE FUNCTION inturn.find_locks(topic text, key text, OUT on_cursor boolean, OUT on_sequence boolean)
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    IF current_setting('transaction_read_only')::boolean OR current_setting('transaction_isolation') <> 'read committed' THEN
        on_cursor := EXISTS (SELECT FROM inturn.key_cursor c WHERE c.topic = find_locks.topic AND c.key = find_locks.key
                             AND inturn.row_holder(c.xmax, 'inturn.key_cursor') IS NOT NULL);
        on_sequence := EXISTS (SELECT FROM inturn.key_sequence s WHERE s.topic = find_locks.topic AND s.key = find_locks.key
                               AND inturn.row_holder(s.xmax, 'inturn.key_sequence') IS NOT NULL);
        RETURN;
    END IF;
    PERFORM FROM inturn.key_cursor c WHERE c.topic = find_locks.topic AND c.key = find_locks.key FOR UPDATE SKIP LOCKED;
    on_cursor := NOT FOUND;
    PERFORM FROM inturn.key_sequence s WHERE s.topic = find_locks.topic AND s.key = find_locks.key FOR UPDATE SKIP LOCKED;
    on_sequence := NOT FOUND;
    RAISE EXCEPTION USING ERRCODE = 'IT000';
EXCEPTION WHEN SQLSTATE 'IT000' THEN
    NULL; -- the variables keep what was found
END
$$;
COMMENT ON FUNCTION inturn.find_locks IS 'Internal: whether the rows of a key are locked.';
