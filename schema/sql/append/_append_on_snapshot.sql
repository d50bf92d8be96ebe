-- Appends a command for a caller at REPEATABLE READ or SERIALIZABLE, and returns its seq. Internal to append.
--
-- Such a caller may read the last number, or miss an idempotency key, on a snapshot older than its lock. It then
-- collides with a command that it does not see, which ON CONFLICT turns from 23505 into 40001: retry the transaction.
-- It may also read an old last turn, and a row that is only locked raises no 40001: it cannot tell whether the key has
-- gone idle since. So it leaves a hint, and an applier looks (see _take_hints).
-- The caller holds the key's row in key_sequence; known is a number that the key has reached. Raises IT009.
CREATE FUNCTION inturn._append_on_snapshot(
    topic text, key text, known bigint, name text, payload jsonb, idempotency_key text, max_pending bigint DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    new_seq bigint;
BEGIN
    INSERT INTO inturn.command_log AS l (topic, key, seq, name, payload, idempotency_key)
    VALUES (_append_on_snapshot.topic, _append_on_snapshot.key,
            1 + coalesce((SELECT l.seq FROM inturn.command_log l
                          WHERE l.topic = _append_on_snapshot.topic AND l.key = _append_on_snapshot.key
                            AND l.seq > known
                          ORDER BY l.seq DESC LIMIT 1), known),
            _append_on_snapshot.name, coalesce(_append_on_snapshot.payload, '{}'), _append_on_snapshot.idempotency_key)
    ON CONFLICT DO NOTHING RETURNING l.seq INTO new_seq;
    PERFORM inturn._leave_hint(topic, key);
    PERFORM inturn._refuse_pending(topic, key, new_seq, max_pending);
    RETURN new_seq;
END
$$;
COMMENT ON FUNCTION inturn._append_on_snapshot IS
    'Internal to append: appends a command at REPEATABLE READ or SERIALIZABLE.';
