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
-- merged: with $7, the epochs of $2, as _plan_merges has planned it: of merged numbers the last one is called, or none; one row
-- stands for all of them, so that the clock does not part them. The plan is looked up a number: a join might lose the order.
-- Takes no locks. Raises what _target_function does.
CREATE FUNCTION inturn._target_query(topic text, target text, merged boolean DEFAULT false) RETURNS text
LANGUAGE sql STABLE
AS $$
SELECT CASE WHEN batches THEN inturn._batch_query(target, merged) ELSE format($query$
    SELECT array_agg(coalesce(k.last_seq, t.applied_seq) ORDER BY t.position),
           CASE WHEN bool_and(k.last_seq = t.applied_seq + k.commands AND k.effects >= 0) IS NOT false THEN coalesce(sum(k.commands), 0) END
    FROM unnest($2, $3%s) WITH ORDINALITY t (key, applied_seq%s, position) CROSS JOIN LATERAL (
        SELECT max(c.seq) AS last_seq, %s AS commands, count(c.effect) AS effects
        FROM (
            SELECT l.seq%s AS effect
            FROM (
                SELECT l.*%s FROM inturn.command_log l
                WHERE l.topic = $1 AND l.key = t.key AND l.seq > t.applied_seq ORDER BY l.seq LIMIT $4) l%s
            WHERE %sclock_timestamp() < $6
            OFFSET 0) c
        OFFSET 0) k
$query$, CASE WHEN merged THEN ', $7' END, CASE WHEN merged THEN ', epoch' END,
    CASE WHEN merged THEN 'sum(c.numbers)' ELSE 'count(*)' END,
    format(CASE WHEN merged THEN ', l.seq - coalesce(p.from_seq, l.seq) + 1 AS numbers, CASE WHEN p.seq IS NULL OR p.into_seq = l.seq THEN '
                                 '%s(ROW($1, l.key, l.seq, coalesce(p.name, l.name), coalesce(p.payload, l.payload), l.created_at, $5)::inturn.command) END'
                ELSE ', %s(ROW($1, l.key, l.seq, l.name, l.payload, l.created_at, $5)::inturn.command)' END,
           target::oid::regproc),
    CASE WHEN given THEN ', row_number() OVER (ORDER BY l.seq) AS place' END,
    CASE WHEN merged THEN ' LEFT JOIN LATERAL (SELECT p.* FROM inturn.merge_plan p'
        ' WHERE p.topic = $1 AND p.key = t.key AND p.epoch = t.epoch AND p.seq = l.seq OFFSET 0) p ON true' END,
    concat(CASE WHEN given THEN 'l.seq = t.applied_seq + l.place AND ' END,
           CASE WHEN merged THEN '(p.seq IS NULL OR p.to_seq = l.seq) AND ' END)) END
FROM (SELECT EXISTS (SELECT FROM inturn.topic t WHERE t.name = _target_query.topic AND t.numbering = 'given') AS given) numbering,
    (SELECT f AS target, (SELECT p.proargtypes[0] = 'inturn.command[]'::regtype FROM pg_catalog.pg_proc p WHERE p.oid = f::oid) AS batches
     FROM inturn._target_function(topic, target) f) resolved
$$;
COMMENT ON FUNCTION inturn._target_query IS 'Internal: the query that calls a SQL target for the next commands of some keys.';
