-- Numbers what has arrived in a topic, one pass at a time; returns how many commands. Internal to _number_arrivals.
--
-- A pass takes what its snapshot shows, the lowest ids first. If one append's transaction committed before another append began,
-- it has the lower id, and a snapshot that shows the later one shows it too: so it is numbered earlier in this pass, or was in one
-- before. That holds whatever part of the ids a pass takes, as long as it takes the lowest; and never for a part of the
-- transactions, or for the ids above the last one taken: a lower one may commit later.
-- Only what the last pass did not see is looked at (appeared): the rows of transactions that it saw running, its own among
-- them, and of later ones. What a held snapshot keeps of the others is not walked over.
-- A key whose row in key_sequence is locked, by an operator, is not waited for: its commands are left behind, marked so, and
-- come before its later ones in the first pass that finds it free.
-- Locks, skipping locked ones: the newest row of arrival_pass, so that one pass runs at a time; the keys' rows in key_sequence,
-- in byte order. Raises IT031 outside READ COMMITTED.
CREATE FUNCTION inturn._number_topic(topic text, max_commands integer) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
DECLARE
    here constant bigint := (SELECT c.system_identifier FROM pg_control_system() c);
    last inturn.arrival_pass;
    left_keys text[];
    free text[];
    batch record;
    busy text[];
    numbered bigint;
BEGIN
    IF NOT inturn._has_arrivals(topic, here) THEN
        RETURN 0;
    END IF;
    PERFORM inturn._require_read_committed();
    SELECT * INTO last FROM inturn.arrival_pass p
    WHERE p.topic = _number_topic.topic ORDER BY p.pass DESC LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        -- In other hands; or there is none, and the next pass, which can lock it, begins with it.
        INSERT INTO inturn.arrival_pass (topic, pass, cluster)
        SELECT _number_topic.topic, 0, here WHERE NOT EXISTS (SELECT FROM inturn.arrival_pass p WHERE p.topic = _number_topic.topic)
        ON CONFLICT DO NOTHING RETURNING * INTO last;
        IF NOT FOUND THEN
            RETURN 0;
        END IF;
    END IF;
    left_keys := ARRAY(SELECT DISTINCT i.key FROM inturn.intake i WHERE i.topic = _number_topic.topic AND i.left_behind);
    free := inturn._lock_arrived_keys(topic, left_keys);

    -- One statement, for the snapshot that it returns is the one that it sees by.
    SELECT array_agg(a.tid) AS tids, array_agg(DISTINCT a.key) AS keys, count(*) AS commands, pg_current_snapshot() AS snapshot
    INTO batch FROM (
        SELECT a.tid, a.key FROM inturn._appeared(topic, CASE WHEN last.cluster = here THEN last.seen END, last.xid) a
        WHERE NOT a.left_behind OR a.key = ANY (free) ORDER BY a.id LIMIT max_commands) a;
    IF batch.commands = 0 THEN
        RETURN 0;
    END IF;
    INSERT INTO inturn.key_sequence (topic, key, arrival)
    SELECT _number_topic.topic, k.key, true FROM unnest(batch.keys) k (key) ON CONFLICT DO NOTHING;
    -- A key that was busy above stays so: what is left behind of it comes first.
    busy := ARRAY(SELECT unnest(batch.keys) EXCEPT SELECT unnest(inturn._lock_arrived_keys(topic, batch.keys))
                  UNION SELECT unnest(left_keys) EXCEPT SELECT unnest(free));
    numbered := inturn._append_arrived(topic, batch.tids, busy);
    IF busy <> '{}' THEN
        UPDATE inturn.intake i SET left_behind = true WHERE i.ctid = ANY (batch.tids) AND NOT i.left_behind;
    END IF;
    -- After a full batch there may be more of the same: the next pass looks from there on again.
    last.seen := CASE WHEN batch.commands < max_commands THEN batch.snapshot WHEN last.cluster = here THEN last.seen END;
    IF last.xid = pg_current_xact_id() THEN
        -- Of this transaction: another one that inserts its first row must go on meeting it.
        UPDATE inturn.arrival_pass p SET seen = last.seen WHERE p.topic = last.topic AND p.pass = last.pass;
    ELSE
        DELETE FROM inturn.arrival_pass p WHERE p.topic = last.topic AND p.pass = last.pass;
        INSERT INTO inturn.arrival_pass (topic, pass, seen, cluster) VALUES (last.topic, last.pass + 1, last.seen, here);
    END IF;
    RETURN numbered;
END
$$;
COMMENT ON FUNCTION inturn._number_topic IS 'Internal to the appliers: numbers what has arrived in a topic.';
