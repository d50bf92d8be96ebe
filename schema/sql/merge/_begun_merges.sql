-- Returns what earlier turns of a key have planned to merge and may have begun, and did not end: from which number to
-- which. Internal to _mergeable_commands. Takes no locks.
--
-- An applier outside may have sent it as one before it failed or was lost: it is taken command by command, and nothing
-- that came later is merged into a part of it. Of each turn that is the merge just after what it has recorded, or after
-- what became nothing there; of one that has recorded nothing, the first that it has planned.
-- epoch: of the turn that reads; NULL: of the next one. Looks only at plans of what is read.
CREATE FUNCTION inturn._begun_merges(topic text, key text, applied_seq bigint, epoch bigint, max_commands integer)
RETURNS TABLE (from_seq bigint, to_seq bigint)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
SELECT b.from_seq, b.to_seq FROM (
    SELECT DISTINCT ON (p.epoch) p.epoch, p.from_seq, p.to_seq FROM inturn.merge_plan p
    WHERE p.topic = _begun_merges.topic AND p.key = _begun_merges.key
      AND p.seq > _begun_merges.applied_seq AND p.seq <= _begun_merges.applied_seq + max_commands
      AND p.epoch < coalesce(_begun_merges.epoch, 9223372036854775807) AND p.into_seq IS NOT NULL
    ORDER BY p.epoch, p.seq) b
LEFT JOIN LATERAL (
    SELECT t.to_seq FROM inturn.turn t
    WHERE t.topic = _begun_merges.topic AND t.key = _begun_merges.key AND t.epoch = b.epoch LIMIT 1) t ON true
WHERE t.to_seq IS NULL OR b.from_seq - 1 - t.to_seq = (
    SELECT count(*) FROM inturn.merge_plan q
    WHERE q.topic = _begun_merges.topic AND q.key = _begun_merges.key
      AND q.seq > t.to_seq AND q.seq < b.from_seq AND q.epoch = b.epoch AND q.into_seq IS NULL)
$$;
COMMENT ON FUNCTION inturn._begun_merges IS
    'Internal: what earlier turns of a key may have begun as one, and did not end.';
