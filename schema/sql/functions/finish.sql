-- Ends turns: moves each key's cursor to its last applied command and lets it go idle, or to the back of the queue.
--
-- The arrays run in parallel, an element a key claimed in this transaction. A turn that applied nothing has
-- applied_seqs = from_seqs - 1: it leaves no entry in turn, and its key is ready again a little later, doubling
-- up to 100 ms, since a caller's transaction is open on it.
-- Locks the keys' rows in key_sequence, skipping those that a caller holds. From here to the commit the callers
-- of these keys wait: all handlers of a transaction run before it, and nothing after it.
-- Raises IT030 when another turn was recorded since the claim, IT031 outside READ COMMITTED.
CREATE FUNCTION inturn.finish(
    topic text, keys text[], epochs bigint[], from_seqs bigint[], applied_seqs bigint[],
    applier text
) RETURNS void
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
DECLARE
    locked text[];
    drained text[];
    moved integer;
BEGIN
    PERFORM inturn.require_read_committed();

    SELECT array_agg(s.key) INTO locked FROM (
        SELECT s.key FROM inturn.key_sequence s
        WHERE s.topic = finish.topic AND s.key = ANY (keys) FOR UPDATE SKIP LOCKED) s;
    -- A statement of its own, whose snapshot is newer than the locks: in the statement above, a command that
    -- was committed while it ran would be missed, and its key would sleep for good.
    SELECT coalesce(array_agg(t.key), '{}') INTO drained
    FROM unnest(keys, applied_seqs) t (key, applied_seq)
    WHERE t.key = ANY (locked) AND NOT EXISTS (
        SELECT FROM inturn.command_log l
        WHERE l.topic = finish.topic AND l.key = t.key AND l.seq = t.applied_seq + 1);

    UPDATE inturn.key_sequence s SET drained_seq = t.applied_seq
    FROM unnest(keys, applied_seqs) t (key, applied_seq)
    WHERE s.topic = finish.topic AND s.key = t.key AND t.key = ANY (drained) AND s.drained_seq <> t.applied_seq;

    UPDATE inturn.key_cursor c SET
        applied_seq = t.applied_seq,
        epoch = CASE WHEN t.applied_seq >= t.from_seq THEN t.epoch ELSE c.epoch END,
        attempts = 0, last_error = NULL, failed_at = NULL,
        empty_turns = CASE WHEN t.applied_seq >= t.from_seq THEN 0 ELSE c.empty_turns + 1 END,
        ready_at = CASE
            WHEN t.key = ANY (drained) THEN NULL
            WHEN t.applied_seq >= t.from_seq THEN clock_timestamp()
            ELSE clock_timestamp() + least(power(2, least(c.empty_turns, 10)), 100) * interval '1 ms' END
    FROM unnest(keys, epochs, from_seqs, applied_seqs) t (key, epoch, from_seq, applied_seq)
    WHERE c.topic = finish.topic AND c.key = t.key AND c.epoch = t.epoch - 1 AND c.applied_seq = t.from_seq - 1;
    GET DIAGNOSTICS moved = ROW_COUNT;
    IF moved <> cardinality(keys) THEN
        RAISE EXCEPTION USING ERRCODE = 'IT030',
            MESSAGE = format('%s of %s turns of topic %L were fenced off: their keys have had another turn since the claim',
                             cardinality(keys) - moved, cardinality(keys), topic);
    END IF;

    INSERT INTO inturn.turn (topic, key, epoch, from_seq, to_seq, outcome, applier, started_at)
    SELECT finish.topic, t.key, t.epoch, t.from_seq, t.applied_seq, 'applied', finish.applier, now()
    FROM unnest(keys, epochs, from_seqs, applied_seqs) t (key, epoch, from_seq, applied_seq)
    WHERE t.applied_seq >= t.from_seq;
END
$$;
COMMENT ON FUNCTION inturn.finish IS 'Ends turns that applied what they took: moves the cursors, lets drained keys go idle.';
