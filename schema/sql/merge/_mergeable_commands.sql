-- Returns the next commands of a key in order, up to the first gap, and of each whether it may be merged. Internal to
-- _fold_merges and _commands_to_merge. Takes no locks.
--
-- Not what an operator has amended or replayed. Not the first one, unless the key was idle before it (or new): the turn
-- before may have failed on it, or somebody outside has begun it and let go. Nor what was begun as one: see
-- _begun_merges.
-- epoch: of the turn that reads; NULL: the first one is not to be merged.
CREATE FUNCTION inturn._mergeable_commands(topic text, key text, applied_seq bigint, epoch bigint, max_commands integer)
RETURNS TABLE (seq bigint, name text, payload jsonb, created_at timestamptz, fixed boolean)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
SELECT c.seq, c.name, c.payload, c.created_at,
       c.seq = _mergeable_commands.applied_seq + 1 AND (_mergeable_commands.epoch = 1 OR EXISTS (
           SELECT FROM inturn.turn t
           WHERE t.topic = _mergeable_commands.topic AND t.key = _mergeable_commands.key
             AND t.epoch = _mergeable_commands.epoch - 1 AND t.drained)) IS NOT TRUE
       OR coalesce(starts_with(c.idempotency_key, 'inturn.replay:'), false)
       OR EXISTS (SELECT FROM inturn.operator_action a
                  WHERE a.topic = _mergeable_commands.topic AND a.key = _mergeable_commands.key
                    AND a.seq = c.seq AND a.action = 'amend')
       OR c.seq <@ ANY (b.begun)
FROM inturn._next_commands(topic, key, applied_seq, max_commands) c
CROSS JOIN (SELECT ARRAY(
    SELECT int8range(m.from_seq, m.to_seq, '[]')
    FROM inturn._begun_merges(topic, key, applied_seq, epoch, max_commands) m) AS begun OFFSET 0) b
ORDER BY c.seq
$$;
COMMENT ON FUNCTION inturn._mergeable_commands IS
    'Internal: the next commands of a key, and whether each may be merged.';
