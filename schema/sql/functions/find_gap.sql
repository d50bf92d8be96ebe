-- Marks a drained key that has later numbers as waiting for the missing one; holds it when it has waited too long.
-- Internal to append, finish and the operators' functions. Only for topics whose callers number.
--
-- A key with a gap_timeout becomes ready when that is over, so that an applier's empty turn comes here again.
-- The caller holds the key's row in key_sequence. Locks the row in key_cursor, which no applier holds then; an operator may
-- have moved the cursor meanwhile, so all else is looked up after the lock.
CREATE FUNCTION inturn.find_gap(topic text, key text) RETURNS void
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    was inturn.key_cursor;
    since timestamptz;
    until timestamptz;
    paused boolean;
    late boolean;
BEGIN
    SELECT * INTO was FROM inturn.key_cursor c
    WHERE c.topic = find_gap.topic AND c.key = find_gap.key AND c.ready_at IS NULL AND c.held_at IS NULL FOR UPDATE;
    IF NOT FOUND
        OR NOT EXISTS (SELECT FROM inturn.key_sequence s
                       WHERE s.topic = was.topic AND s.key = was.key AND s.drained_seq = was.applied_seq)
        OR NOT EXISTS (SELECT FROM inturn.command_log l
                       WHERE l.topic = was.topic AND l.key = was.key AND l.seq > was.applied_seq + 1)
        OR EXISTS (SELECT FROM inturn.command_log l
                   WHERE l.topic = was.topic AND l.key = was.key AND l.seq = was.applied_seq + 1) THEN
        RETURN;
    END IF;
    since := coalesce(was.waiting_at, clock_timestamp());
    paused := was.paused_at IS NOT NULL AND clock_timestamp() < coalesce(was.paused_until, 'infinity');
    SELECT since + t.gap_timeout INTO until FROM inturn.topic t WHERE t.name = was.topic;
    late := until <= clock_timestamp() AND NOT paused;
    UPDATE inturn.key_cursor c SET
        waiting_at = since,
        ready_at = CASE WHEN NOT late AND NOT (paused AND c.paused_until IS NULL) AND until IS NOT NULL
                        THEN greatest(until, c.paused_until) END,
        paused_at = CASE WHEN paused THEN c.paused_at END,
        paused_until = CASE WHEN paused THEN c.paused_until END,
        held_at = CASE WHEN late THEN clock_timestamp() END,
        failed_at = CASE WHEN late THEN clock_timestamp() END,
        last_error = CASE WHEN late
                          THEN format('command %s was not appended within the topic''s gap_timeout', c.applied_seq + 1) END
    WHERE c.topic = was.topic AND c.key = was.key;
END
$$;
COMMENT ON FUNCTION inturn.find_gap IS 'Internal: marks a drained key that has later numbers as waiting, and holds it when that lasts too long.';
