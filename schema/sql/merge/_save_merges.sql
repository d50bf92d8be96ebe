-- Plans merges under the epoch of a turn; what a claim without a result planned under it before is deleted.
-- Internal to _plan_merges.
--
-- Runs as its owner: nobody writes here directly. Raises IT030 when the key is neither claimed nor leased for the turn;
-- and what _held_seq does.
CREATE FUNCTION inturn._save_merges(topic text, key text, epoch bigint, entries inturn.merge_plan[]) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    applied constant bigint := inturn._held_seq(topic, key, epoch);
BEGIN
    IF applied IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'IT030',
            MESSAGE = format('turn %s of key %L of topic %L was fenced off: its claim is not held any more', epoch,
                             key, topic);
    END IF;
    DELETE FROM inturn.merge_plan p
    WHERE p.topic = _save_merges.topic AND p.key = _save_merges.key AND p.seq > applied
      AND p.epoch = _save_merges.epoch;
    INSERT INTO inturn.merge_plan
    SELECT _save_merges.topic, _save_merges.key, _save_merges.epoch, e.seq, e.from_seq, e.to_seq, e.into_seq, e.rule,
           e.name, e.payload
    FROM unnest(entries) e;
END
$$;
COMMENT ON FUNCTION inturn._save_merges IS 'Internal: plans merges under the epoch of a turn.';
