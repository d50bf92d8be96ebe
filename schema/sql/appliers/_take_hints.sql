-- Looks at the keys of some topics that callers with old snapshots could not wake, and deletes their hints; returns how
-- many.
-- Internal to the appliers.
--
-- since: only hints left at this time or later, see _begin_pass. A key that somebody else has in hand keeps its hint,
-- as left now. Some thousand at most, and some of each topic. Those of other topics are not walked over.
-- Locks, skipping locked ones: the hints; the keys' rows in key_sequence, until the end of the transaction. So the
-- caller commits at once: no handler runs in this transaction. What _look_at_key locks.
CREATE FUNCTION inturn._take_hints(topics text[], since timestamptz DEFAULT '-infinity') RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET enable_incremental_sort = off
AS $$
DECLARE
    hint record;
    looked boolean;
    taken bigint := 0;
BEGIN
    IF NOT EXISTS (SELECT FROM inturn.wake_hint h WHERE h.left_at >= since) THEN
        RETURN 0;
    END IF;
    PERFORM inturn._require_read_committed();
    FOR hint IN
        SELECT h.* FROM unnest(topics) t (name) CROSS JOIN LATERAL (
            SELECT h.ctid AS tid, h.topic, h.key FROM inturn.wake_hint h
            WHERE h.topic = t.name AND h.left_at >= since ORDER BY h.left_at, h.key -- as only their index has it
            LIMIT greatest(1000 / greatest(cardinality(topics), 1), 10) FOR UPDATE SKIP LOCKED) h
    LOOP
        taken := taken + 1;
        looked := false;
        PERFORM FROM inturn.key_sequence s WHERE s.topic = hint.topic AND s.key >= hint.key AND s.key <= hint.key
        ORDER BY s.key DESC LIMIT 1 FOR UPDATE SKIP LOCKED;
        IF FOUND THEN
            looked := inturn._look_at_key(hint.topic, hint.key);
        ELSE
            -- A key that was forgotten has nothing pending.
            looked := NOT EXISTS (SELECT FROM inturn.key_sequence s WHERE s.topic = hint.topic AND s.key = hint.key);
        END IF;
        IF looked THEN
            DELETE FROM inturn.wake_hint h WHERE h.ctid = hint.tid;
        ELSE
            UPDATE inturn.wake_hint h SET left_at = clock_timestamp() WHERE h.ctid = hint.tid;
        END IF;
    END LOOP;
    RETURN taken;
END
$$;
COMMENT ON FUNCTION inturn._take_hints IS
    'Internal to the appliers: looks at the keys that callers with old snapshots could not wake.';
