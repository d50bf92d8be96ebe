-- Appends one command to a key, in the caller's transaction, and returns its seq.
--
-- The same idempotency key again on the same key appends nothing and returns the first seq.
-- Locks, in this order, held to commit: the key's row in key_sequence; for an idle key, its row in key_cursor.
-- Raises IT001 to IT005 (see refuse_command); 40001 when the caller's snapshot is older than the key's last append.
CREATE FUNCTION inturn.append(
    topic text, key text, name text,
    payload jsonb DEFAULT '{}', idempotency_key text DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    max_bytes integer;
    drained bigint;
    new_seq bigint;
BEGIN
    SELECT t.max_payload_bytes, s.drained_seq INTO max_bytes, drained
    FROM inturn.topic t JOIN inturn.key_sequence s ON s.topic = t.name
    WHERE t.name = append.topic AND s.key = append.key FOR UPDATE OF s;
    IF NOT FOUND THEN
        SELECT t.max_payload_bytes INTO max_bytes FROM inturn.topic t WHERE t.name = append.topic;
    END IF;
    IF (octet_length(key) BETWEEN 1 AND 512 AND octet_length(name) BETWEEN 1 AND 128
        AND coalesce(octet_length(payload::text), 2) <= max_bytes
        AND coalesce(octet_length(idempotency_key), 1) BETWEEN 1 AND 512) IS NOT TRUE
    THEN
        PERFORM inturn.refuse_command(topic, key, name, payload, idempotency_key, max_bytes);
    END IF;
    IF drained IS NULL THEN
        drained := inturn.lock_key(topic, key);
    END IF;

    -- From here on statements see every earlier append to the key: its caller has committed or is gone.
    IF idempotency_key IS NOT NULL THEN
        SELECT l.seq INTO new_seq FROM inturn.command_log l
        WHERE l.topic = append.topic AND l.key = append.key AND l.idempotency_key = append.idempotency_key;
        IF FOUND THEN
            RETURN new_seq;
        END IF;
    END IF;
    INSERT INTO inturn.command_log (topic, key, seq, name, payload, idempotency_key)
    SELECT append.topic, append.key, 1 + greatest(drained, (
               SELECT l.seq FROM inturn.command_log l
               WHERE l.topic = append.topic AND l.key = append.key AND l.seq > drained ORDER BY l.seq DESC LIMIT 1)),
           append.name, coalesce(append.payload, '{}'), append.idempotency_key
    RETURNING seq INTO new_seq;
    IF new_seq IS NULL THEN
        RAISE serialization_failure USING
            MESSAGE = format('could not append to key %L of topic %L: it has commands that this transaction''s snapshot does not see', key, topic),
            HINT = 'Retry the transaction.';
    END IF;

    -- The first command after the drained ones finds the key idle. Any later one finds it awake, or held.
    IF new_seq = drained + 1 THEN
        PERFORM inturn.wake_key(topic, key);
    END IF;
    RETURN new_seq;
END
$$;
COMMENT ON FUNCTION inturn.append IS 'Appends one command to a key, in the caller''s transaction, and returns its seq.';
