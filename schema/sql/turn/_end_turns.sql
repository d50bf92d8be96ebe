-- Records turns that applied what they took, and moves on the tickets of their keys, or deletes those of keys that go
-- idle.
-- Internal to finish.
--
-- The tickets are named by their place (ctid), which their locks keep: joined to an array of keys, a plan made while
-- the tables were small walks over every key of the topic. The settings leave the planner no other way.
-- A turn that applied nothing takes no epoch, unless the key goes idle with it: the next append looks for that entry.
-- Locks nothing that claim has not locked.
CREATE FUNCTION inturn._end_turns(
    topic text, keys text[], tickets tid[], drained boolean[], epochs bigint[], from_seqs bigint[],
    applied_seqs bigint[],
    applier text
) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_indexscan = off
SET enable_indexonlyscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET enable_material = off
-- Before 18, what is off costs so much that the statement would be compiled.
SET jit = off
AS $$
BEGIN
    INSERT INTO inturn.turn (topic, key, epoch, from_seq, to_seq, applied_seq, drained, outcome, applier, started_at)
    SELECT _end_turns.topic, t.key, t.epoch, t.from_seq, t.applied_seq, t.applied_seq, t.drained,
           CASE WHEN t.applied_seq >= t.from_seq THEN 'applied' ELSE 'idle' END, _end_turns.applier, now()
    FROM unnest(keys, drained, epochs, from_seqs, applied_seqs) t (key, drained, epoch, from_seq, applied_seq)
    WHERE t.applied_seq >= t.from_seq OR t.drained;
    DELETE FROM inturn.ticket c USING unnest(tickets, drained) t (tid, drained) WHERE t.drained AND c.ctid = t.tid;
    IF false = ANY (drained) THEN
        UPDATE inturn.ticket c SET
            applied_seq = t.applied_seq,
            epoch = CASE WHEN t.applied_seq >= t.from_seq THEN t.epoch ELSE c.epoch END,
            empty_turns = CASE WHEN t.applied_seq >= t.from_seq THEN 0 ELSE c.empty_turns + 1 END,
            marked = CASE WHEN c.marked AND t.applied_seq < t.from_seq
                          THEN EXISTS (SELECT FROM inturn.key_mark m
                                       WHERE m.topic = c.topic AND m.key = c.key AND m.epoch = c.epoch)
                          ELSE false END,
            ready_at = clock_timestamp()
                       + CASE WHEN t.applied_seq < t.from_seq THEN inturn._empty_turn_wait(c.empty_turns + 1)
                              ELSE '0' END
        FROM unnest(tickets, drained, epochs, from_seqs, applied_seqs) t (tid, drained, epoch, from_seq, applied_seq)
        WHERE NOT t.drained AND c.ctid = t.tid;
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._end_turns IS
    'Internal to finish: records turns, and moves on or deletes the tickets of their keys.';
