-- Saves a key whose cursor was moved: it becomes idle if nothing is pending, otherwise its next turn is scheduled.
-- Returns where it stands then.
-- Internal to release, the claims by lease and the operators' functions.
--
-- was: as it is stored; cursor: as it was moved. A lease that runs goes on: the key does not go idle under it, and is
-- ready when it is over. After an empty turn the key is ready a little later, as finish has it.
-- The caller has locked the key's ticket. Locks its row in key_sequence, skipping it if a caller holds it: then the key
-- is ready, and an applier's turn will find out.
CREATE FUNCTION inturn._requeue(was inturn.key_cursor, cursor inturn.key_cursor) RETURNS inturn.key_cursor
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    locked boolean;
    missing boolean;
    drained boolean;
BEGIN
    PERFORM FROM inturn.key_sequence s WHERE s.topic = was.topic AND s.key >= was.key AND s.key <= was.key
    ORDER BY s.key DESC LIMIT 1 FOR UPDATE SKIP LOCKED;
    locked := FOUND;
    -- A statement of its own, whose snapshot is newer than the lock: see finish.
    SELECT NOT EXISTS (SELECT FROM inturn.command_log l
                       WHERE l.topic = was.topic AND l.key = was.key AND l.seq = cursor.applied_seq + 1) INTO missing;
    drained := locked AND missing AND (cursor.lease_until > clock_timestamp()) IS NOT TRUE;
    IF drained THEN
        cursor := inturn._find_gap(cursor);
        IF cursor.waiting_at IS NULL AND inturn._stored_state(cursor) <> 'paused' THEN
            PERFORM inturn._make_idle(was, cursor);
            SELECT * INTO cursor FROM inturn._find_cursor(was.topic, was.key) c;
            RETURN cursor;
        ELSIF cursor.waiting_at IS NULL THEN
            cursor.ready_at := inturn._next_ready_at(cursor, NULL);
        END IF;
    ELSE
        cursor.waiting_at := CASE WHEN missing THEN cursor.waiting_at END;
        cursor.ready_at := inturn._next_ready_at(cursor, clock_timestamp()
                                                 + inturn._empty_turn_wait(cursor.empty_turns));
    END IF;
    PERFORM inturn._save_key(was, cursor);
    IF NOT drained AND cursor.empty_turns = 0 THEN
        PERFORM inturn._notify_appliers(was.topic);
    END IF;
    RETURN cursor;
END
$$;
COMMENT ON FUNCTION inturn._requeue IS
    'Internal: makes a key idle if nothing is pending, otherwise schedules its next turn.';
