-- Plans merges under the epoch of a turn; what was planned under it before, by a claim that came to nothing, is forgotten.
-- Internal to _plan_merges.
--
-- The caller has claimed the key, and holds its ticket. Runs as its owner: nobody writes here by himself.
CREATE FUNCTION inturn._save_merges(topic text, key text, epoch bigint, entries inturn.merge_plan[]) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DELETE FROM inturn.merge_plan p
WHERE p.topic = _save_merges.topic AND p.key = _save_merges.key AND p.epoch = _save_merges.epoch;
INSERT INTO inturn.merge_plan
SELECT _save_merges.topic, _save_merges.key, _save_merges.epoch, e.seq, e.from_seq, e.to_seq, e.into_seq, e.rule, e.name, e.payload
FROM unnest(entries) e;
$$;
COMMENT ON FUNCTION inturn._save_merges IS 'Internal: plans merges under the epoch of a turn.';
