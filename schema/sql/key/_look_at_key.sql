-- Looks at a key that may be idle although something is pending: wakes it when its next command is there; marks it as
-- waiting when only later numbers are. Nothing changes for a key that is awake, held, paused or leased. Internal.
--
-- Returns false when the ticket of a key that waits for a number is in hand elsewhere: an operator has it, or an
-- applier, as when the gap has just timed out. Waiting for them might be waiting for handlers: leave a hint, and look
-- again later.
-- The caller holds the key's row in key_sequence, at READ COMMITTED. Locks the ticket of a key that waits for a number,
-- skipping a locked one.
CREATE FUNCTION inturn._look_at_key(topic text, key text) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    was inturn.key_cursor;
    cursor inturn.key_cursor;
BEGIN
    SELECT * INTO was FROM inturn._find_cursor(_look_at_key.topic, _look_at_key.key) c;
    -- Of a later epoch: an applier may have ended a turn between the two statements.
    IF NOT EXISTS (SELECT FROM inturn.ticket t
                   WHERE t.topic = was.topic AND t.key = was.key AND t.epoch >= was.epoch) THEN
        IF EXISTS (SELECT FROM inturn.command_log l
                   WHERE l.topic = was.topic AND l.key = was.key AND l.seq = was.applied_seq + 1) THEN
            PERFORM inturn._wake_key(topic, key, was.epoch, was.applied_seq);
        ELSE
            cursor := inturn._find_gap(was);
            IF cursor.waiting_at IS NOT NULL THEN
                PERFORM inturn._save_key(was, cursor);
            END IF;
        END IF;
        RETURN true;
    -- It cannot go idle now, which takes the callers' lock.
    ELSIF was.waiting_at IS NULL THEN
        RETURN true;
    END IF;
    PERFORM FROM inturn.ticket t WHERE t.topic = was.topic AND t.key = was.key AND t.epoch >= was.epoch
    FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    -- An operator may have moved it meanwhile.
    SELECT * INTO was FROM inturn._find_cursor(_look_at_key.topic, _look_at_key.key) c;
    IF was.waiting_at IS NULL THEN
        RETURN true;
    END IF;
    cursor := inturn._find_gap(was);
    IF cursor.waiting_at IS NULL THEN
        cursor.ready_at := inturn._next_ready_at(cursor, clock_timestamp());
        PERFORM inturn._notify_appliers(topic);
    END IF;
    IF cursor IS DISTINCT FROM was THEN
        PERFORM inturn._save_key(was, cursor);
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION inturn._look_at_key IS
    'Internal: wakes an idle key that has a next command, or marks that it waits for one.';
