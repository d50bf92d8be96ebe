-- Numbers what has arrived in a topic, one pass at a time; returns how many commands, and whether there may be more to
-- number.
-- Internal to _number_arrivals.
--
-- A pass takes what its snapshot shows, the lowest ids first. If one append's transaction committed before another
-- append began, it has the lower id, and a snapshot that shows the later one shows it too: so it is numbered earlier in
-- this pass, or was in one before. That holds whatever part of the ids a pass takes, as long as it takes the lowest;
-- and never for a part of the transactions, or for the ids above the last one taken: a lower one may commit later.
-- Where it leaves some of that, the next pass plans the rest (_plan_arrivals), and those after it each read their part.
-- It looks only at what the last pass did not see (_appeared): the rows of transactions that it saw running, its own
-- among them, and of later ones. It does not walk over what a held snapshot keeps of the others. It does not wait for a
-- key whose row in key_sequence an operator has locked, and a key whose numbering fails does not stop the others: what
-- arrives on it is left behind, and from then on numbered by _number_left_behind alone.
-- max_commands: in one pass; and as many octets as a claim takes, as they are stored.
-- Locks, without waiting: an advisory lock of the topic, so that one pass runs at a time; then, skipping locked ones,
-- the keys' rows in key_sequence, in byte order, and those of the keys left behind. Raises IT031 outside READ
-- COMMITTED.
CREATE FUNCTION inturn._number_topic(topic text, max_commands integer, OUT numbered bigint, OUT more boolean)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
DECLARE
    last inturn.arrival_pass;
    batch record;
    locked text[];
    busy text[];
BEGIN
    numbered := 0;
    more := false;
    IF NOT inturn._has_arrivals(inturn._last_arrival_pass(topic)) THEN
        RETURN;
    END IF;
    PERFORM inturn._require_read_committed();
    IF NOT pg_try_advisory_xact_lock(inturn._numbering_lock(topic)) THEN
        RETURN;
    END IF;
    -- After the lock: whoever had it has committed.
    last := inturn._last_arrival_pass(topic);
    IF last.is_full AND last.planned IS NULL THEN
        last := inturn._plan_arrivals(last, max_commands);
    END IF;
    SELECT * INTO batch FROM inturn._next_arrivals(last, max_commands);
    IF batch.tids IS NOT NULL THEN
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
    -- After a full batch there is more of the same: the next pass looks from there on again, at this transaction too.
    more := batch.is_full;
    last.is_full := more;
    IF last.planned IS NOT NULL THEN
        last := inturn._end_part(last, batch.last_id);
        more := true;
    ELSIF NOT more THEN
        last.seen := batch.snapshot;
        last.own := '{}';
    END IF;
    last.own := last.own || CASE WHEN pg_current_xact_id() <> ALL (last.own) THEN ARRAY[pg_current_xact_id()]
                                 ELSE '{}' END;
    PERFORM inturn._save_arrival_pass(last);
END
$$;
COMMENT ON FUNCTION inturn._number_topic IS 'Internal to the appliers: numbers what has arrived in a topic.';
