-- Lists keys and where they stand, the worst first: held, then ready (the longest first), then idle. Takes no locks.
--
-- of_topic, of_state: NULL for all. state: held, retrying (its next command failed and waits for its next attempt),
-- ready, idle. pending counts commands that are committed and not applied; oldest_pending_at is when the next
-- one was appended. Each state is read from its own index, so this stays quick with millions of keys.
CREATE FUNCTION inturn.list_keys(of_topic text DEFAULT NULL, of_state text DEFAULT NULL, max_keys integer DEFAULT 50)
RETURNS TABLE (
    topic text, key text, state text, applied_seq bigint, last_seq bigint, pending bigint,
    oldest_pending_at timestamptz, attempts integer, ready_at timestamptz, held_at timestamptz, last_error text
)
LANGUAGE sql STABLE
AS $$
SELECT c.topic, c.key, c.state, c.applied_seq, l.last_seq, l.last_seq - c.applied_seq, o.created_at,
       c.attempts, c.ready_at, c.held_at, c.last_error
FROM inturn.topic t CROSS JOIN LATERAL (
    (SELECT 1 AS rank, 'held' AS state, c.* FROM inturn.key_cursor c
     WHERE c.topic = t.name AND c.held_at IS NOT NULL AND coalesce(of_state, 'held') = 'held'
     ORDER BY c.held_at LIMIT max_keys)
    UNION ALL
    (SELECT 2, CASE WHEN c.attempts > 0 THEN 'retrying' ELSE 'ready' END, c.* FROM inturn.key_cursor c
     WHERE c.topic = t.name AND c.ready_at IS NOT NULL
       AND coalesce(of_state, CASE WHEN c.attempts > 0 THEN 'retrying' ELSE 'ready' END)
           = CASE WHEN c.attempts > 0 THEN 'retrying' ELSE 'ready' END
     ORDER BY c.ready_at LIMIT max_keys)
    UNION ALL
    (SELECT 3, 'idle', c.* FROM inturn.key_cursor c
     WHERE c.topic = t.name AND c.ready_at IS NULL AND c.held_at IS NULL AND coalesce(of_state, 'idle') = 'idle'
     ORDER BY c.key LIMIT max_keys)
) c
CROSS JOIN LATERAL (
    SELECT greatest(c.applied_seq, (SELECT max(l.seq) FROM inturn.command_log l
                                    WHERE l.topic = c.topic AND l.key = c.key)) AS last_seq) l
LEFT JOIN inturn.command_log o ON o.topic = c.topic AND o.key = c.key AND o.seq = c.applied_seq + 1
WHERE of_topic IS NULL OR t.name = of_topic
ORDER BY c.rank, coalesce(c.held_at, c.ready_at), c.topic, c.key LIMIT max_keys
$$;
COMMENT ON FUNCTION inturn.list_keys IS 'Lists keys and where they stand, the worst first.';
