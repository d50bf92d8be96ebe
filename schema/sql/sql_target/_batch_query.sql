CREATE FUNCTION inturn._batch_query(target regprocedure, merged boolean) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
-- Returns the query that calls a SQL target for batches, once for each of some keys. Internal to _target_query, which says
-- what its parameters are and what it gives.
--
-- Key after key, in their order. OFFSET 0 keeps each call where it stands: below the look at its answer, above the reading of
-- its commands; no call is made for a key without any, or once the time is over.
-- merged: the target gets what the turn has planned; a key of which all became nothing moves on without a call.
-- Takes no locks.
SELECT format($query$
    SELECT array_agg(coalesce(k.done_seq, t.applied_seq) ORDER BY t.position), coalesce(sum(k.done_seq - t.applied_seq), 0)
    FROM unnest($2, $3%4$s) WITH ORDINALITY t (key, applied_seq%5$s, position) LEFT JOIN LATERAL (
        SELECT inturn._done_seq(%1$L, c.batch, c.last_seq, %2$s) AS done_seq
        FROM (
            SELECT b.batch, b.last_seq, CASE WHEN cardinality(b.batch) > 0 THEN %3$s(b.batch) END AS answer
            FROM (SELECT * FROM inturn._read_batch($1, t.key, t.applied_seq, $4, $5%6$s) OFFSET 0) b
            WHERE b.last_seq > t.applied_seq AND clock_timestamp() < $6
            OFFSET 0) c
        OFFSET 0) k ON true
$query$, target, CASE WHEN p.prorettype = 'void'::regtype THEN 'CASE WHEN num_nulls(c.answer) >= 0 THEN cardinality(c.batch) END' ELSE 'c.answer' END,
    target::oid::regproc, CASE WHEN merged THEN ', $7' END, CASE WHEN merged THEN ', epoch' END, CASE WHEN merged THEN ', t.epoch' END)
FROM pg_proc p WHERE p.oid = target::oid
$$;
COMMENT ON FUNCTION inturn._batch_query IS 'Internal: the query that calls a SQL target for batches.';
