-- Returns the query that calls a SQL target for the next commands of some keys. Internal to the appliers.
--
-- Its parameters: $1 topic, $2 keys, $3 their applied_seqs, $4 the most commands of a key, $5 the attempt, $6 a time
-- after which no further command is begun.
-- It gives one row: where each key stands then, in the order of $2, and how many commands there were; that is NULL
-- when the clock was set back just then, and a command in the middle was left out.
-- Commands are called as they are read, never collected: a key's in order (LATERAL is a nested loop over a sorted
-- inner side), one key after the other. OFFSET 0 keeps the call below the aggregates. Its results are counted, and the count
-- is looked at: the planner leaves out no call, whatever the function is declared. LIMIT keeps the
-- look at the clock above the sort: what it leaves out is the end of a key's commands, and all of the keys after it.
-- Where the callers number, only up to the first gap: numbering the rows costs a tenth of a deep drain, so only there.
-- A function for batches has a query of its own: see _batch_query.
-- Takes no locks. Raises what _target_function does.
CREATE FUNCTION inturn._target_query(topic text, target text) RETURNS text
LANGUAGE sql STABLE
AS $$
SELECT CASE WHEN batches THEN inturn._batch_query(target) ELSE format($query$
    SELECT array_agg(coalesce(k.last_seq, t.applied_seq) ORDER BY t.position),
           CASE WHEN bool_and(k.last_seq = t.applied_seq + k.commands AND k.effects >= 0) IS NOT false THEN coalesce(sum(k.commands), 0) END
    FROM unnest($2, $3) WITH ORDINALITY t (key, applied_seq, position) CROSS JOIN LATERAL (
        SELECT max(c.seq) AS last_seq, count(*) AS commands, count(c.effect) AS effects
        FROM (
            SELECT l.seq, %s(ROW($1, l.key, l.seq, l.name, l.payload, l.created_at, $5)::inturn.command) AS effect
            FROM (
                SELECT l.*%s FROM inturn.command_log l
                WHERE l.topic = $1 AND l.key = t.key AND l.seq > t.applied_seq ORDER BY l.seq LIMIT $4) l
            WHERE %sclock_timestamp() < $6
            OFFSET 0) c
        OFFSET 0) k
$query$, target::oid::regproc,
    CASE WHEN given THEN ', row_number() OVER (ORDER BY l.seq) AS place' END,
    CASE WHEN given THEN 'l.seq = t.applied_seq + l.place AND ' END) END
FROM (SELECT EXISTS (SELECT FROM inturn.topic t WHERE t.name = _target_query.topic AND t.numbering = 'given') AS given) numbering,
    (SELECT f AS target, (SELECT p.proargtypes[0] = 'inturn.command[]'::regtype FROM pg_catalog.pg_proc p WHERE p.oid = f::oid) AS batches
     FROM inturn._target_function(topic, target) f) resolved
$$;
COMMENT ON FUNCTION inturn._target_query IS 'Internal: the query that calls a SQL target for the next commands of some keys.';
