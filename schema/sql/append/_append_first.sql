-- Appends the first command to a new key and returns 1; NULL when the key has just become known. Internal to append.
-- In a topic that numbers on arrival, does what _append_arrival does, for a known key too.
--
-- Two first callers meet on the primary key: the second waits for the first, and gets NULL, or is the first itself
-- if that one rolled back. At REPEATABLE READ and SERIALIZABLE it gets 40001.
-- Locks, held to commit: the key's new row in key_sequence.
-- Raises what _refuse_command raises.
CREATE FUNCTION inturn._append_first(topic text, key text, name text, payload jsonb, idempotency_key text)
RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    settings inturn.topic;
BEGIN
    INSERT INTO inturn.key_sequence (topic, key)
    SELECT t.name, _append_first.key FROM inturn.topic t
    WHERE t.name = _append_first.topic AND t.numbering = 'assigned' AND octet_length(_append_first.key) BETWEEN 1 AND 512
      AND coalesce(octet_length(_append_first.idempotency_key), 1) BETWEEN 1 AND 512
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        SELECT * INTO settings FROM inturn.topic t WHERE t.name = _append_first.topic;
        IF settings.numbering = 'arrival' THEN
            RETURN inturn._append_arrival(topic, key, name, payload, idempotency_key);
        END IF;
        PERFORM inturn._refuse_command(topic, key, name, payload, idempotency_key);
        IF settings.numbering = 'given' THEN
            PERFORM inturn._refuse_number(settings, key, NULL, idempotency_key);
        END IF;
        RETURN NULL;
    END IF;
    INSERT INTO inturn.command_log (topic, key, seq, name, payload, idempotency_key)
    VALUES (_append_first.topic, _append_first.key, 1, _append_first.name,
            coalesce(_append_first.payload, '{}'), _append_first.idempotency_key);
    PERFORM inturn._wake_key(topic, key, 0, 0);
    RETURN 1;
END
$$;
COMMENT ON FUNCTION inturn._append_first IS 'Internal to append: appends the first command to a new key.';
