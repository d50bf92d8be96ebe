-- Appends a command under the number that its caller gives it, in any order of arrival, repeated at will. Internal to append.
--
-- The same number with the same content appends nothing and returns the number; what an operator amended counts as it was.
-- Locks, in this order, held to commit: the key's row in key_sequence; for a key that stands at the number before, or
-- before a gap, its row in key_cursor.
-- Raises IT007 when the topic numbers by itself, IT050 for a number below the first, IT051 for one that has other
-- content, IT052 for one that was passed over, IT053 for one too far ahead; and what refuse_command raises.
CREATE FUNCTION inturn.append_given(
    topic text, key text, seq bigint, name text, payload jsonb, idempotency_key text
) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    settings inturn.topic;
    drained bigint;
    applied bigint;
    awake boolean;
BEGIN
    SELECT * INTO settings FROM inturn.topic t WHERE t.name = append_given.topic;
    PERFORM inturn.refuse_command(topic, key, name, payload, idempotency_key);
    PERFORM inturn.refuse_number(settings, key, seq, idempotency_key);
    LOOP
        SELECT s.drained_seq INTO drained FROM inturn.key_sequence s
        WHERE s.topic = append_given.topic AND s.key = append_given.key FOR UPDATE;
        EXIT WHEN FOUND;
        -- known_seq below 0 marks the key for append: its numbers are given.
        INSERT INTO inturn.key_sequence (topic, key, drained_seq, known_seq)
        VALUES (append_given.topic, append_given.key, settings.first_seq - 1, -1) ON CONFLICT DO NOTHING;
        INSERT INTO inturn.key_cursor (topic, key, applied_seq)
        VALUES (append_given.topic, append_given.key, settings.first_seq - 1) ON CONFLICT DO NOTHING;
    END LOOP;

    SELECT c.applied_seq, c.ready_at <= clock_timestamp() INTO applied, awake FROM inturn.key_cursor c
    WHERE c.topic = append_given.topic AND c.key = append_given.key;
    IF inturn.is_there(topic, key, seq, name, payload) THEN
        RETURN seq;
    ELSIF seq <= applied OR seq > applied + settings.max_ahead THEN
        PERFORM inturn.refuse_place(settings, key, seq, applied);
    END IF;
    INSERT INTO inturn.command_log (topic, key, seq, name, payload)
    VALUES (append_given.topic, append_given.key, append_given.seq, append_given.name, coalesce(append_given.payload, '{}'))
    -- Never in the way here but at REPEATABLE READ and SERIALIZABLE, where it turns 23505 into 40001: run it again.
    ON CONFLICT DO NOTHING;
    -- An awake key cannot go idle now, which takes this lock. An applier may have it in hand, as when a gap has timed out,
    -- beside keys whose handlers are at work: waiting for its row would be waiting for them.
    IF awake THEN
        RETURN seq;
    ELSIF seq = drained + 1 THEN
        PERFORM inturn.end_gap(topic, key);
        PERFORM inturn.wake_key(topic, key);
    ELSE
        PERFORM inturn.find_gap(topic, key);
    END IF;
    RETURN seq;
END
$$;
COMMENT ON FUNCTION inturn.append_given IS 'Internal to append: appends a command under the number that its caller gives it.';
