-- Saves where a key stands: its ticket and its marks. Internal: everything but a turn's usual end comes through here.
-- Wakes those who wait for the key if it has moved on or is held now.
--
-- was: the key as it is stored; cursor: as it is to be, with its ready_at from _next_ready_at.
-- The caller has locked the key's ticket; or, of an idle key, its row in key_sequence: then this is its new ticket.
CREATE FUNCTION inturn._save_key(was inturn.key_cursor, cursor inturn.key_cursor) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    marks constant inturn.key_mark := ROW(cursor.topic, cursor.key, cursor.epoch, cursor.attempts, cursor.last_error,
        cursor.failed_at, cursor.held_at, cursor.paused_at, cursor.paused_until, cursor.waiting_at,
        cursor.claimed_by, cursor.claimed_at, cursor.lease_until,
        CASE WHEN cursor.attempts > 0 THEN cursor.ready_at END,
        cursor.lost);
    is_marked constant boolean := cursor.attempts > 0 OR cursor.lost > 0 OR num_nonnulls(
        cursor.last_error, cursor.held_at, cursor.paused_at, cursor.waiting_at, cursor.claimed_by) > 0;
BEGIN
    UPDATE inturn.ticket t SET
        epoch = cursor.epoch, applied_seq = cursor.applied_seq, ready_at = coalesce(cursor.ready_at, 'infinity'),
        empty_turns = cursor.empty_turns, marked = is_marked
    WHERE t.topic = was.topic AND t.key = was.key AND t.epoch = was.epoch;
    IF NOT FOUND THEN
        INSERT INTO inturn.ticket (topic, key, epoch, applied_seq, ready_at, empty_turns, marked)
        VALUES (cursor.topic, cursor.key, cursor.epoch, cursor.applied_seq, coalesce(cursor.ready_at, 'infinity'),
                cursor.empty_turns, is_marked);
    END IF;
    DELETE FROM inturn.key_mark m WHERE m.topic = was.topic AND m.key = was.key AND m.epoch = was.epoch;
    IF is_marked THEN
        INSERT INTO inturn.key_mark SELECT marks.*;
    END IF;
    IF cursor.applied_seq > was.applied_seq OR cursor.held_at IS NOT NULL AND was.held_at IS NULL THEN
        PERFORM inturn._wake_waiters(cursor.topic, cursor.key);
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._save_key IS 'Internal: saves where a key stands.';
