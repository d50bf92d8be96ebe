-- Appends a command under the number that its caller gives it, in any order of arrival, repeated at will. Internal to
-- append.
--
-- The same number with the same content appends nothing and returns the number; for a command that an operator amended,
-- see _has_content.
-- Locks, in this order, held to commit: the key's row in key_sequence; for a key that waits for a number, its ticket,
-- unless somebody else has it in hand: then it leaves a hint, and an applier looks (see _take_hints). Before that, at
-- REPEATABLE READ and SERIALIZABLE, the table skip, as whoever writes there does.
-- Raises IT007 when the topic numbers by itself, IT050 for a number below the first, IT051 for one that has other
-- content, IT052 for one that was skipped, IT071 for one that was pruned, IT053 for one too far ahead; IT014; and
-- what _refuse_command raises.
CREATE FUNCTION inturn._append_given(
    topic text, key text, seq bigint, name text, payload jsonb, idempotency_key text
) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    settings inturn.topic;
    applied bigint;
    looked boolean := false;
BEGIN
    SELECT * INTO settings FROM inturn.topic t WHERE t.name = _append_given.topic;
    IF settings.callers IS NOT NULL THEN
        PERFORM inturn._require_grant(topic, 'caller');
    END IF;
    PERFORM inturn._refuse_command(topic, key, name, payload, idempotency_key);
    PERFORM inturn._refuse_number(settings, key, seq, idempotency_key);
    LOOP
        PERFORM FROM inturn.key_sequence s
        WHERE s.topic = _append_given.topic AND s.key >= _append_given.key AND s.key <= _append_given.key
        ORDER BY s.key DESC LIMIT 1 FOR UPDATE;
        EXIT WHEN FOUND;
        INSERT INTO inturn.key_sequence (topic, key, given) VALUES (_append_given.topic, _append_given.key, true)
        ON CONFLICT DO NOTHING;
        IF FOUND AND settings.first_seq <> 1 THEN
            -- Where its numbers begin: a new key without any turn stands at 0.
            INSERT INTO inturn.turn (topic, key, epoch, from_seq, to_seq, applied_seq, drained, outcome,
                                     applier, started_at)
            VALUES (_append_given.topic, _append_given.key, 0, settings.first_seq, settings.first_seq - 1,
                    settings.first_seq - 1,
                    true, 'idle', session_user, now());
        END IF;
    END LOOP;

    SELECT c.applied_seq INTO applied FROM inturn._find_cursor(_append_given.topic, _append_given.key) c;
    IF inturn._is_there(topic, key, seq, name, payload) THEN
        RETURN seq;
    ELSIF seq <= applied OR seq > applied + settings.max_ahead THEN
        PERFORM inturn._refuse_place(settings, key, seq, applied);
    END IF;
    INSERT INTO inturn.command_log (topic, key, seq, name, payload)
    VALUES (_append_given.topic, _append_given.key, _append_given.seq, _append_given.name,
            coalesce(_append_given.payload, '{}'))
    -- Never in the way here but at REPEATABLE READ and SERIALIZABLE, where it turns 23505 into 40001: run it again.
    ON CONFLICT DO NOTHING;
    IF current_setting('transaction_isolation') = 'read committed' THEN
        looked := inturn._look_at_key(topic, key);
    ELSE
        LOCK TABLE inturn.skip IN ROW EXCLUSIVE MODE; -- waited for here: the next one waits for nobody
        PERFORM inturn._refuse_passed(topic, key, seq);
    END IF;
    IF NOT looked THEN
        PERFORM inturn._leave_hint(topic, key); -- see _append_on_snapshot
    END IF;
    RETURN seq;
END
$$;
COMMENT ON FUNCTION inturn._append_given IS
    'Internal to append: appends a command under the number that its caller gives it.';
