-- Returns where keys stand after a query of _target_query, and how many commands were called. Internal to apply_batch.
-- Takes no locks.
--
-- keys, applied_seqs: where they stood; called, seqs: what the query gave. commands is NULL when the clock was set back
-- just then, and a command in the middle was left out.
CREATE FUNCTION inturn._reached(
    keys text[], applied_seqs bigint[], called text[], seqs bigint[], OUT done_seqs bigint[], OUT commands bigint
)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    SELECT array_agg(coalesce(k.last_seq, t.seq) ORDER BY t.place),
           CASE WHEN bool_and(k.last_seq = t.seq + k.commands) IS NOT false THEN coalesce(cardinality(seqs), 0) END
    INTO done_seqs, commands
    FROM unnest(keys, applied_seqs) WITH ORDINALITY t (key, seq, place) LEFT JOIN (
        SELECT c.key, max(c.seq) AS last_seq, count(*) AS commands FROM unnest(called, _reached.seqs) c (key, seq)
        GROUP BY c.key) k
        ON k.key = t.key;
END
$$;
COMMENT ON FUNCTION inturn._reached IS 'Internal to apply_batch: where keys stand after their commands were called.';
