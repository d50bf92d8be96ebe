-- Appends the first command to a new key and returns its number, 1 unless the topic has forgotten keys (see
-- _begin_keys); NULL when the key has just become known. Internal to append.
--
-- Two first callers meet on the primary key: the second waits for the first, and gets NULL, or is the first itself if
-- that one rolled back. At REPEATABLE READ and SERIALIZABLE it gets 40001.
-- Locks, held to commit: the key's new row in key_sequence.
-- Raises what _begin_keys raises.
CREATE FUNCTION inturn._append_first(topic text, key text, name text, payload jsonb, idempotency_key text)
RETURNS bigint
LANGUAGE plpgsql VOLATILE
-- Qualified, not pinned: a microsecond of every append to a new key.
AS $$
DECLARE
    applied bigint := 0; epoch bigint := 0;
    base pg_catalog.record;
BEGIN
    INSERT INTO inturn.key_sequence (topic, key) VALUES (_append_first.topic, _append_first.key) ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    -- After the insert: see _begin_keys. Nearly no topic has forgotten keys, and a call costs a fifth of an append.
    IF EXISTS (SELECT FROM inturn.forgotten f WHERE f.topic OPERATOR(pg_catalog.=) _append_first.topic)
        OR pg_catalog.current_setting('transaction_isolation') OPERATOR(pg_catalog.<>) 'read committed' THEN
        SELECT * INTO base FROM inturn._begin_keys(topic, ARRAY[key]);
        applied := base.applied_seq; epoch := base.epoch;
    END IF;
    INSERT INTO inturn.command_log (topic, key, seq, name, payload, idempotency_key)
    VALUES (_append_first.topic, _append_first.key, applied OPERATOR(pg_catalog.+) 1, _append_first.name,
            coalesce(_append_first.payload, '{}'), _append_first.idempotency_key);
    PERFORM inturn._wake_key(topic, key, epoch, applied);
    RETURN applied OPERATOR(pg_catalog.+) 1;
END
$$;
COMMENT ON FUNCTION inturn._append_first IS 'Internal to append: appends the first command to a new key.';
