CREATE FUNCTION inturn._batch_query(target regprocedure) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
-- Returns the query that calls a SQL target for batches, once for each of some keys. Internal to _target_query, which says
-- what its parameters are and what it gives.
--
-- Key after key, in their order. OFFSET 0 keeps each call where it stands: below the look at its answer, above the reading of
-- its commands; no call is made for a key without any, or once the time is over.
-- Takes no locks.
SELECT format($query$
    SELECT array_agg(t.applied_seq + coalesce(k.done, 0) ORDER BY t.position), coalesce(sum(k.done), 0)
    FROM unnest($2, $3) WITH ORDINALITY t (key, applied_seq, position) LEFT JOIN LATERAL (
        SELECT inturn._count_done(%1$L, c.commands, %2$s) AS done
        FROM (
            SELECT cardinality(b.batch) AS commands, %3$s(b.batch) AS answer
            FROM (SELECT inturn._read_batch($1, t.key, t.applied_seq, $4, $5) AS batch OFFSET 0) b
            WHERE b.batch IS NOT NULL AND clock_timestamp() < $6
            OFFSET 0) c
        OFFSET 0) k ON true
$query$, target, CASE WHEN p.prorettype = 'void'::regtype THEN 'CASE WHEN num_nulls(c.answer) >= 0 THEN c.commands END' ELSE 'c.answer' END,
    target::oid::regproc)
FROM pg_proc p WHERE p.oid = target::oid
$$;
COMMENT ON FUNCTION inturn._batch_query IS 'Internal: the query that calls a SQL target for batches.';
