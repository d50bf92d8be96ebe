-- Returns those of some keys that this transaction has claimed for their turns, or that are leased for them, with the
-- number after which to read. Internal to _turn_commands. Takes no locks. Qualified, not pinned: it is inlined.
--
-- place: of each in the arrays. A ticket is found by its epoch, so that what earlier turns left in the index is not
-- walked over. Raises what _is_leased does.
CREATE FUNCTION inturn._held_keys(topic text, keys text[], epochs bigint[], applied_seqs bigint[])
RETURNS TABLE (place bigint, key text, epoch bigint, applied_seq bigint)
LANGUAGE sql STABLE
AS $$
SELECT t.place, t.key, t.epoch, greatest(t.seq, c.applied_seq)
FROM ROWS FROM (pg_catalog.unnest(keys), pg_catalog.unnest(epochs), pg_catalog.unnest(applied_seqs))
    WITH ORDINALITY t (key, epoch, seq, place)
CROSS JOIN LATERAL (
    SELECT c.applied_seq FROM inturn.ticket c
    WHERE c.topic OPERATOR(pg_catalog.=) _held_keys.topic AND c.key OPERATOR(pg_catalog.=) t.key
      AND c.epoch OPERATOR(pg_catalog.>=) (greatest(t.epoch, 0) OPERATOR(pg_catalog.-) 1)
      AND c.epoch OPERATOR(pg_catalog.<=) t.epoch
      AND CASE WHEN c.epoch OPERATOR(pg_catalog.=) t.epoch THEN inturn._is_leased(c.topic, c.key, c.epoch)
               ELSE c.xmax OPERATOR(pg_catalog.=) pg_catalog.pg_current_xact_id()::pg_catalog.xid END
    LIMIT 1) c
$$;
COMMENT ON FUNCTION inturn._held_keys IS
    'Internal to the appliers: those of some keys that are claimed or leased for their turns.';
