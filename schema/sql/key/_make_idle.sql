-- Makes a key idle where it stands: deletes its ticket and marks, and records that its last turn was drained. Internal.
--
-- cursor: where it stands; was: as it is stored. Where there was no turn under its epoch, an entry says that it went
-- idle.
-- The caller holds the key's row in key_sequence, has seen in a later statement that nothing is pending, and has locked
-- the key's ticket.
CREATE FUNCTION inturn._make_idle(was inturn.key_cursor, cursor inturn.key_cursor) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
BEGIN
    DELETE FROM inturn.ticket t WHERE t.topic = was.topic AND t.key = was.key AND t.epoch = was.epoch;
    DELETE FROM inturn.key_mark m WHERE m.topic = was.topic AND m.key = was.key AND m.epoch = was.epoch;
    INSERT INTO inturn.turn AS u (topic, key, epoch, from_seq, to_seq, applied_seq, drained, outcome,
                                  applier, started_at)
    VALUES (cursor.topic, cursor.key, cursor.epoch, cursor.applied_seq + 1, cursor.applied_seq,
            cursor.applied_seq, true,
            'idle', coalesce(was.claimed_by, session_user), now())
    ON CONFLICT ON CONSTRAINT turn_pkey DO UPDATE SET drained = true, applied_seq = EXCLUDED.applied_seq;
    IF cursor.applied_seq > was.applied_seq THEN
        PERFORM inturn._wake_waiters(cursor.topic, cursor.key);
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._make_idle IS 'Internal: makes a key idle where it stands.';
