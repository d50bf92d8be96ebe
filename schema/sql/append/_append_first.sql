-- Appends the first command to a new key and returns its number, 1 unless the topic has forgotten keys (see
-- _begin_keys); NULL when the key has just become known. Internal to append.
--
-- Two first callers meet on the primary key: the second waits for the first, and gets NULL, or is the first itself if
-- that one rolled back. At REPEATABLE READ and SERIALIZABLE it gets 40001.
-- fresh: whether it runs at READ COMMITTED.
-- Locks, held to commit: the key's new row in key_sequence.
-- Raises what _begin_keys raises.
CREATE FUNCTION inturn._append_first(topic text, key text, name text, payload jsonb, idempotency_key text,
                                     fresh boolean)
RETURNS bigint
LANGUAGE plpgsql VOLATILE
-- Qualified, not pinned: a microsecond of every append to a new key.
AS $$
DECLARE
    applied bigint; epoch bigint;
    asleep boolean;
BEGIN
    INSERT INTO inturn.key_sequence (topic, key) VALUES (_append_first.topic, _append_first.key) ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    -- After the insert: see _begin_keys. Nearly no topic has forgotten keys, and a call costs more than this.
    SELECT f.seq, f.epoch INTO applied, epoch FROM inturn.forgotten f
    WHERE f.topic OPERATOR(pg_catalog.=) _append_first.topic;
    IF FOUND OR NOT fresh THEN
        SELECT * INTO applied, epoch FROM inturn._begin_keys(topic, ARRAY[key]);
    END IF;
    INSERT INTO inturn.command_log (topic, key, seq, name, payload, idempotency_key)
    VALUES (_append_first.topic, _append_first.key, coalesce(applied, 0) OPERATOR(pg_catalog.+) 1, _append_first.name,
            coalesce(_append_first.payload, '{}'), _append_first.idempotency_key);
    -- As _wake_key does, but that no ticket can be there: only a known key is paused.
    INSERT INTO inturn.ticket (topic, key, epoch, applied_seq, ready_at)
    VALUES (_append_first.topic, _append_first.key, coalesce(epoch, 0), coalesce(applied, 0),
            pg_catalog.clock_timestamp())
    RETURNING EXISTS (SELECT FROM inturn.listener l
                      WHERE l.topic OPERATOR(pg_catalog.=) ANY (ARRAY[_append_first.topic, ''])
                        AND l.asleep_until OPERATOR(pg_catalog.>) pg_catalog.clock_timestamp()) INTO asleep;
    IF asleep THEN
        PERFORM inturn._notify_appliers(topic);
    END IF;
    RETURN coalesce(applied, 0) OPERATOR(pg_catalog.+) 1;
END
$$;
COMMENT ON FUNCTION inturn._append_first IS 'Internal to append: appends the first command to a new key.';
