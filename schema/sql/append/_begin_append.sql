-- Begins what append does with a command that is not plain: looks up what it may be, refuses it, or locks its key.
-- Internal to append.
--
-- locked: true, the key's row in key_sequence; false, the key is new, and its row was inserted; NULL, all is done, and
-- new_seq is what append returns. max_pending: of the topic, to be checked where the key stands.
-- Locks, held to commit: the key's row in key_sequence, but where numbers are given on arrival.
-- Raises what append does.
CREATE FUNCTION inturn._begin_append(
    topic text, key text, name text, payload jsonb, idempotency_key text, seq bigint,
    OUT locked boolean, OUT new_seq bigint, OUT max_pending bigint
)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    numbering text; callers text[];
    fresh constant boolean := current_setting('transaction_isolation') = 'read committed';
BEGIN
    SELECT t.numbering, t.callers, t.max_pending INTO numbering, callers, max_pending
    FROM inturn.topic t WHERE t.name = _begin_append.topic;
    IF numbering = 'given' OR seq IS NOT NULL THEN
        new_seq := inturn._append_given(topic, key, seq, name, payload, idempotency_key);
        RETURN;
    END IF;
    IF callers IS NOT NULL THEN
        PERFORM inturn._require_grant(topic, 'caller');
    END IF;
    PERFORM inturn._refuse_command(topic, key, name, payload, idempotency_key);
    IF numbering = 'arrival' THEN
        new_seq := inturn._append_arrival(topic, key, name, payload, idempotency_key, max_pending);
        RETURN;
    END IF;
    -- Again where the row went while it was waited for: a prune has forgotten the key.
    LOOP
        PERFORM FROM inturn.key_sequence s
        WHERE s.topic = _begin_append.topic AND s.key >= _begin_append.key AND s.key <= _begin_append.key
        ORDER BY s.key DESC LIMIT 1 FOR UPDATE;
        locked := FOUND;
        EXIT WHEN locked;
        INSERT INTO inturn.key_sequence (topic, key) VALUES (_begin_append.topic, _begin_append.key)
        ON CONFLICT DO NOTHING;
        EXIT WHEN FOUND;
    END LOOP;
    IF NOT fresh THEN
        new_seq := CASE WHEN NOT locked THEN inturn._append_first(topic, key, name, payload, idempotency_key)
            ELSE coalesce(CASE WHEN idempotency_key IS NOT NULL THEN
                inturn._number_of(topic, key, name, payload, idempotency_key) END,
            inturn._append_on_snapshot(
                topic, key, coalesce((SELECT u.applied_seq FROM inturn.turn u
                                      WHERE u.topic = _begin_append.topic AND u.key = _begin_append.key
                                      ORDER BY u.epoch DESC LIMIT 1), 0),
                name, payload, idempotency_key, max_pending)) END;
        locked := NULL;
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._begin_append IS
    'Internal to append: looks up what a command may be, refuses it, or locks its key.';
