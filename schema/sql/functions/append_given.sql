-- Appends a command under the number that its caller gives it, in any order of arrival, repeated at will. Internal to append.
--
-- The same number with the same content appends nothing and returns the number; what an operator amended counts as it was.
-- Locks, in this order, held to commit: the key's row in key_sequence; for a key that waits for a number, its ticket, unless
-- it is in other hands: then it leaves a hint, and an applier looks (see take_hints).
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
    applied bigint;
    looked boolean := false;
BEGIN
    SELECT * INTO settings FROM inturn.topic t WHERE t.name = append_given.topic;
    PERFORM inturn.refuse_command(topic, key, name, payload, idempotency_key);
    PERFORM inturn.refuse_number(settings, key, seq, idempotency_key);
    LOOP
        PERFORM FROM inturn.key_sequence s WHERE s.topic = append_given.topic AND s.key = append_given.key FOR UPDATE;
        EXIT WHEN FOUND;
        INSERT INTO inturn.key_sequence (topic, key, given) VALUES (append_given.topic, append_given.key, true)
        ON CONFLICT DO NOTHING;
        IF FOUND AND settings.first_seq <> 1 THEN
            -- Where its numbers begin: a new key without any turn stands at 0.
            INSERT INTO inturn.turn (topic, key, epoch, from_seq, to_seq, applied_seq, drained, outcome, applier, started_at)
            VALUES (append_given.topic, append_given.key, 0, settings.first_seq, settings.first_seq - 1, settings.first_seq - 1,
                    true, 'idle', session_user, now());
        END IF;
    END LOOP;

    SELECT c.applied_seq INTO applied FROM inturn.key_cursor c WHERE c.topic = append_given.topic AND c.key = append_given.key;
    IF inturn.is_there(topic, key, seq, name, payload) THEN
        RETURN seq;
    ELSIF seq <= applied OR seq > applied + settings.max_ahead THEN
        PERFORM inturn.refuse_place(settings, key, seq, applied);
    END IF;
    INSERT INTO inturn.command_log (topic, key, seq, name, payload)
    VALUES (append_given.topic, append_given.key, append_given.seq, append_given.name, coalesce(append_given.payload, '{}'))
    -- Never in the way here but at REPEATABLE READ and SERIALIZABLE, where it turns 23505 into 40001: run it again.
    ON CONFLICT DO NOTHING;
    IF current_setting('transaction_isolation') = 'read committed' THEN -- see append_on_snapshot
        looked := inturn.look_at_key(topic, key);
    ELSE
        BEGIN
            -- Nor does the snapshot show that the number was passed over since: then this is 40001 too.
            INSERT INTO inturn.skip (topic, key, seq, epoch, skipped_by)
            VALUES (append_given.topic, append_given.key, append_given.seq, 0, 'operator') ON CONFLICT DO NOTHING;
            RAISE EXCEPTION USING ERRCODE = 'IT999';
        EXCEPTION WHEN SQLSTATE 'IT999' THEN NULL;
        END;
    END IF;
    IF NOT looked THEN
        PERFORM inturn.leave_hint(topic, key);
    END IF;
    RETURN seq;
END
$$;
COMMENT ON FUNCTION inturn.append_given IS 'Internal to append: appends a command under the number that its caller gives it.';
