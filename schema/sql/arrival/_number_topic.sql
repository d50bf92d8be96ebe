-- Numbers what has arrived in a topic, one pass at a time; returns how many commands. Internal to _number_arrivals.
--
-- A pass takes what its snapshot shows, the lowest ids first. If one append's transaction committed before another append began,
-- it has the lower id, and a snapshot that shows the later one shows it too: so it is numbered earlier in this pass, or was in one
-- before. That holds whatever part of the ids a pass takes, as long as it takes the lowest; and never for a part of the
-- transactions, or for the ids above the last one taken: a lower one may commit later.
-- Only what the last pass did not see is looked at (_appeared): the rows of transactions that it saw running, its own among
-- them, and of later ones. What a held snapshot keeps of the others is not walked over.
-- A key whose row in key_sequence is locked, by an operator, is not waited for, and one that itself makes its numbering fail
-- does not keep the others: what arrives on it is left behind, and from then on numbered by _number_left_behind alone.
-- Locks, skipping locked ones: the newest row of arrival_pass, so that one pass runs at a time; the keys' rows in key_sequence,
-- in byte order, then those of the keys left behind. Raises IT031 outside READ COMMITTED.
CREATE FUNCTION inturn._number_topic(topic text, max_commands integer) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
DECLARE
    here constant bigint := (SELECT c.system_identifier FROM pg_control_system() c);
    last inturn.arrival_pass;
    batch record;
    locked text[];
    busy text[];
    numbered bigint := 0;
BEGIN
    IF NOT inturn._has_arrivals(topic, here) THEN
        RETURN 0;
    END IF;
    PERFORM inturn._require_read_committed();
    last := inturn._lock_arrival_pass(topic, here);
    IF last.topic IS NULL THEN
        RETURN 0;
    END IF;
    -- One statement, for the snapshot that it returns is the one that it sees by.
    SELECT array_agg(a.tid) AS tids, array_agg(DISTINCT a.key) AS keys, count(*) AS commands, pg_current_snapshot() AS snapshot
    INTO batch FROM (SELECT a.tid, a.key FROM inturn._appeared(topic, last.seen, last.xid) a ORDER BY a.id LIMIT max_commands) a;
    IF batch.commands > 0 THEN
        INSERT INTO inturn.key_sequence (topic, key, arrival)
        SELECT _number_topic.topic, k.key, true FROM unnest(batch.keys) k (key) ON CONFLICT DO NOTHING;
        locked := inturn._lock_arrived_keys(topic, batch.keys);
        -- What was left behind of a key comes before what arrives later.
        busy := ARRAY(SELECT unnest(batch.keys) EXCEPT SELECT unnest(locked)
                      UNION SELECT k.key FROM unnest(batch.keys) k (key) WHERE EXISTS (
                          SELECT FROM inturn.intake i
                          WHERE i.topic = _number_topic.topic AND i.key = k.key AND i.left_because IS NOT NULL));
        IF busy <> '{}' THEN
            -- They have other tids then.
            UPDATE inturn.intake i SET left_because = 'locked' WHERE i.ctid = ANY (batch.tids) AND i.key = ANY (busy);
        END IF;
        numbered := inturn._append_batch(topic, batch.tids);
    END IF;
    IF (clock_timestamp() - last.looked_back_at < interval '100 ms') IS NOT TRUE THEN
        numbered := numbered + inturn._number_left_behind(topic, max_commands);
        last.looked_back_at := clock_timestamp();
    END IF;
    -- After a full batch there may be more of the same: the next pass looks from there on again.
    IF batch.commands < max_commands THEN
        last.seen := batch.snapshot;
    END IF;
    PERFORM inturn._save_arrival_pass(last);
    RETURN numbered;
END
$$;
COMMENT ON FUNCTION inturn._number_topic IS 'Internal to the appliers: numbers what has arrived in a topic.';
