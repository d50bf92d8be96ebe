-- Reads the next commands of the keys that a batch has claimed, one key after the other and, of each, in order.
-- Internal to apply_batch.
--
-- first_at, last_at: the first and the last ready_at of them, as claim returned them. The tickets are found as claim
-- found them, in one scan: by their keys they would be a probe each, a tenth of a drain. The collation keeps the
-- planner from that.
-- Of a key that this transaction has not claimed, nothing is returned. Where callers number, only up to the first gap.
-- At most 10,000 commands in all: they are collected, so the keys that would have more come next time.
-- Takes no locks.
CREATE FUNCTION inturn._batch_commands(
    topic text, keys text[], first_at timestamptz, last_at timestamptz, max_commands integer
) RETURNS TABLE (key text, seq bigint, name text, payload jsonb, created_at timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
AS $$
#variable_conflict use_column
BEGIN
    IF EXISTS (SELECT FROM inturn.topic t WHERE t.name = _batch_commands.topic AND t.numbering = 'given') THEN
        RETURN QUERY
        SELECT l.key, l.seq, l.name, l.payload, l.created_at
        FROM inturn.ticket c
        CROSS JOIN LATERAL inturn._next_commands(c.topic, c.key, c.applied_seq, max_commands) l
        WHERE c.topic COLLATE "POSIX" = _batch_commands.topic AND c.ready_at >= first_at AND c.ready_at <= last_at
          AND c.xmax = pg_current_xact_id()::xid AND c.key COLLATE "default" = ANY (keys)
        LIMIT 10000;
    ELSE
        RETURN QUERY
        SELECT c.key, l.seq, l.name, l.payload, l.created_at
        FROM (SELECT c.key, c.applied_seq FROM inturn.ticket c
              WHERE c.topic COLLATE "POSIX" = _batch_commands.topic AND c.ready_at >= first_at AND c.ready_at <= last_at
                AND c.xmax = pg_current_xact_id()::xid AND c.key COLLATE "default" = ANY (keys)
              ORDER BY c.ready_at) c
        CROSS JOIN LATERAL (
            SELECT l.seq, l.name, l.payload, l.created_at FROM inturn.command_log l
            WHERE l.topic = _batch_commands.topic AND l.key = c.key AND l.seq > c.applied_seq
            ORDER BY l.seq LIMIT max_commands) l
        LIMIT 10000;
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._batch_commands IS
    'Internal to apply_batch: the next commands of the keys that it has claimed.';
