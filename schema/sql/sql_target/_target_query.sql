-- Returns the query that calls a SQL target for the next commands of some keys. Internal to the appliers.
--
-- source: the function that reads them, _batch_commands or _turn_commands. Its parameters: $1 to $5 what that takes:
-- the topic, the keys, two that find them, the most commands of a key; $6 the attempt; $7 a time after which no further
-- command is begun. The first one is, however late that is: where everything takes long, none would be otherwise.
-- It gives one row: of each command that was called, its key and its seq (see _reached), and how many there
-- were.
-- It runs with the session's search_path, which is the target's: all of it is qualified. The target is called for one
-- key's commands after the other's, in the order in which they were read. OFFSET 0 keeps the call below the aggregates.
-- Its results are counted, and the count is looked at: the planner leaves out no call, whatever the function is
-- declared. It is planned anew for every batch, so it is short. A function for batches has a query of its own: see
-- _batch_query. Where the topic merges, the target is called for the last one of merged numbers, or for none; and all
-- of them are counted.
-- target: what _require_target has returned a moment ago; NULL: it is looked up now. Takes no locks. Raises what
-- _trusted_target does.
CREATE FUNCTION inturn._target_query(settings inturn.topic, source text, target regprocedure DEFAULT NULL) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT CASE WHEN batches THEN inturn._batch_query(target, source, settings.merges) ELSE format($query$
    SELECT pg_catalog.array_agg(c.key), pg_catalog.array_agg(%1$s.seq),
           CASE WHEN pg_catalog.count(c.effect) OPERATOR(pg_catalog.>=) 0 THEN pg_catalog.count(*) END
    FROM (
        SELECT l.key, l.seq, %2$s%3$s(ROW($1, l.key, l.seq, l.name, l.payload, l.created_at,
                                          $6)::inturn.command)%4$s AS effect
        FROM inturn.%5$I($1, $2, $3, $4, $5) WITH ORDINALITY l
        WHERE l.ordinality OPERATOR(pg_catalog.=) 1 OR pg_catalog.clock_timestamp() OPERATOR(pg_catalog.<) $7
        OFFSET 0) c%6$s
$query$, CASE WHEN settings.merges THEN 's' ELSE 'c' END,
    CASE WHEN settings.merges THEN 'l.from_seq, CASE WHEN l.name IS NOT NULL THEN ' END, target::oid::regproc,
    CASE WHEN settings.merges THEN ' END' END, source,
    CASE WHEN settings.merges THEN ' CROSS JOIN LATERAL pg_catalog.generate_series(c.from_seq, c.seq) s (seq)' END) END
FROM (SELECT f AS target, (SELECT p.proargtypes[0] = 'inturn.command[]'::regtype FROM pg_proc p
                           WHERE p.oid = f::oid) AS batches
      FROM (SELECT coalesce(_target_query.target, inturn._trusted_target(settings)) AS f) t) resolved
$$;
COMMENT ON FUNCTION inturn._target_query IS 'Internal to the appliers: the query that calls a SQL target.';
