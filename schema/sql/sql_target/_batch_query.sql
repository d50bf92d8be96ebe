-- Returns the query that calls a SQL target for batches, once for each of some keys. Internal to _target_query, which
-- says what its parameters are and what it gives: a row's worth for each number that is done.
--
-- source: as there. _read_batch reads for all of them; where source is _batch_commands, it finds the keys by
-- themselves.
-- Key after key, in their order. OFFSET 0 keeps each call where it stands: below the look at its answer, above the
-- reading of its commands; no call is made for a key without any, or once the time is over. Where the topic merges, a
-- key of which all became nothing moves on without a call. All of it is qualified. Takes no locks.
CREATE FUNCTION inturn._batch_query(target regprocedure, source text, merges boolean) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT format($query$
    SELECT pg_catalog.array_agg(k.key), pg_catalog.array_agg(s.seq), pg_catalog.count(*)
    FROM (
        SELECT c.key, c.first_seq, inturn._done_seq(%1$L, c.batch, c.last_seq, %2$s) AS done_seq
        FROM (
            SELECT b.*, CASE WHEN pg_catalog.cardinality(b.batch) OPERATOR(pg_catalog.>) 0
                                 THEN %3$s(b.batch) END AS answer
            FROM (SELECT t.key, t.place, r.* FROM %5$s
                  CROSS JOIN LATERAL inturn._read_batch($1, t.key, %4$s, $5, $6) r OFFSET 0) b
            WHERE b.last_seq OPERATOR(pg_catalog.>=) b.first_seq
              AND (b.place OPERATOR(pg_catalog.=) 1 OR pg_catalog.clock_timestamp() OPERATOR(pg_catalog.<) $7)
            OFFSET 0) c
        OFFSET 0) k
    CROSS JOIN LATERAL pg_catalog.generate_series(k.first_seq, k.done_seq) s (seq)
$query$, target,
    CASE WHEN p.prorettype = 'void'::regtype
        THEN 'CASE WHEN pg_catalog.num_nulls(c.answer) OPERATOR(pg_catalog.>=) 0 THEN pg_catalog.cardinality(c.batch) '
             'END'
        ELSE 'c.answer' END,
    target::oid::regproc,
    CASE WHEN source = '_batch_commands' THEN 'NULL, 0' ELSE 't.epoch, t.seq' END || format(', %L', merges),
    CASE WHEN source = '_batch_commands' THEN 'pg_catalog.unnest($2) WITH ORDINALITY t (key, place)'
         ELSE 'ROWS FROM (pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4)) WITH ORDINALITY '
              't (key, epoch, seq, place)' END)
FROM pg_proc p WHERE p.oid = target::oid
$$;
COMMENT ON FUNCTION inturn._batch_query IS 'Internal to the appliers: the query that calls a SQL target for batches.';
