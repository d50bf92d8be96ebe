-- Appends one command to a key, in the caller's transaction, and returns its seq.
--
-- The same idempotency key again on the same key appends nothing and returns the first seq.
-- seq: the command's number, in a topic whose callers number (see append_given); NULL in every other.
-- Locks, in this order, held to commit: the key's row in key_sequence; for an idle key, its row in key_cursor.
-- Raises IT001 to IT005 (see refuse_command); 40001 when the caller's snapshot is older than the key's last append.
-- The last number is looked for in a statement after the lock: on the lock's own snapshot, numbers would repeat.
CREATE FUNCTION inturn.append(
    topic text, key text, name text,
    payload jsonb DEFAULT '{}', idempotency_key text DEFAULT NULL, seq bigint DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    drained bigint;
    known bigint;
    new_seq bigint;
BEGIN
    IF seq IS NOT NULL THEN
        RETURN inturn.append_given(topic, key, seq, name, payload, idempotency_key);
    END IF;
    -- Every topic takes 1024 bytes of payload; only for more is its limit looked up.
    IF octet_length(name) BETWEEN 1 AND 128 IS NOT TRUE OR octet_length(payload::text) > 1024 THEN
        PERFORM inturn.refuse_command(topic, key, name, payload, idempotency_key);
    END IF;
    LOOP
        SELECT s.drained_seq, s.known_seq INTO drained, known FROM inturn.key_sequence s
        WHERE s.topic = append.topic AND s.key = append.key FOR UPDATE;
        EXIT WHEN FOUND;
        -- No row yet: this is the key's first command, unless another caller's has just committed.
        new_seq := inturn.append_first(topic, key, name, payload, idempotency_key);
        IF new_seq IS NOT NULL THEN
            RETURN new_seq;
        END IF;
    END LOOP;

    IF known < 0 THEN
        RETURN inturn.append_given(topic, key, NULL, name, payload, idempotency_key);
    END IF;
    known := greatest(drained, known);

    -- From here on statements see every earlier append to the key: its caller has committed or is gone.
    IF idempotency_key IS NOT NULL THEN
        PERFORM inturn.refuse_command(topic, key, name, payload, idempotency_key);
        SELECT l.seq INTO new_seq FROM inturn.command_log l
        WHERE l.topic = append.topic AND l.key = append.key AND l.idempotency_key = append.idempotency_key;
        IF FOUND THEN
            RETURN new_seq;
        END IF;
    END IF;
    IF current_setting('transaction_isolation') = 'read committed' THEN
        INSERT INTO inturn.command_log AS l (topic, key, seq, name, payload, idempotency_key)
        VALUES (append.topic, append.key,
                1 + coalesce((SELECT l.seq FROM inturn.command_log l
                              WHERE l.topic = append.topic AND l.key = append.key AND l.seq > known
                              ORDER BY l.seq DESC LIMIT 1), known),
                append.name, coalesce(append.payload, '{}'), append.idempotency_key)
        RETURNING l.seq INTO new_seq;
    ELSE
        new_seq := inturn.insert_on_snapshot(topic, key, known, name, payload, idempotency_key);
    END IF;

    -- The first command after the drained ones finds the key idle. Any later one finds it awake, or held.
    IF new_seq = drained + 1 THEN
        PERFORM inturn.wake_key(topic, key);
    ELSIF new_seq % 32 = 0 THEN
        UPDATE inturn.key_sequence s SET known_seq = new_seq WHERE s.topic = append.topic AND s.key = append.key;
    END IF;
    RETURN new_seq;
END
$$;
COMMENT ON FUNCTION inturn.append IS 'Appends one command to a key, in the caller''s transaction, and returns its seq.';
