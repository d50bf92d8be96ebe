-- Ends turns: moves each key's cursor to its last applied command and lets it go idle, or to the back of the queue.
--
-- The arrays run in parallel, an element a key claimed in this transaction. A turn that applied nothing has
-- applied_seqs = from_seqs - 1: it leaves no entry in turn, and its key is ready again a little later, doubling
-- up to 100 ms, since a caller's transaction is open on it.
-- Locks the keys' rows in key_sequence, skipping those that a caller holds. From here to the commit the callers
-- of these keys wait: all handlers of a transaction run before it, and nothing after it.
-- Raises IT030 when this transaction does not hold the claim, or another turn was recorded since; IT031 outside READ COMMITTED.
CREATE FUNCTION inturn.finish(
    topic text, keys text[], epochs bigint[], from_seqs bigint[], applied_seqs bigint[], applier text
) RETURNS void
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    sequences tid[];
    cursors tid[];
    drained boolean[];
    moved integer;
BEGIN
    PERFORM inturn.require_read_committed();

    -- Rows are looked up one by one, in subqueries: see move_cursors.
    SELECT array_agg(s.ctid ORDER BY t.position) INTO sequences
    FROM unnest(keys) WITH ORDINALITY t (key, position) LEFT JOIN LATERAL (
        SELECT s.ctid FROM inturn.key_sequence s
        WHERE s.topic = finish.topic AND s.key = t.key FOR UPDATE SKIP LOCKED LIMIT 1) s ON true;

    -- A statement of its own, whose snapshot is newer than the locks: in the statement above, a command that
    -- was committed while it ran would be missed, and its key would sleep for good.
    SELECT array_agg(t.sequence IS NOT NULL AND (
               SELECT true FROM inturn.command_log l
               WHERE l.topic = finish.topic AND l.key = t.key AND l.seq = t.applied_seq + 1) IS NULL
               ORDER BY t.position),
           array_agg((SELECT c.ctid FROM inturn.key_cursor c WHERE c.topic = finish.topic AND c.key = t.key)
               ORDER BY t.position)
    INTO drained, cursors
    FROM unnest(keys, applied_seqs, sequences) WITH ORDINALITY t (key, applied_seq, sequence, position);

    moved := inturn.move_cursors(sequences, cursors, drained, epochs, from_seqs, applied_seqs);
    IF moved <> cardinality(keys) THEN
        RAISE EXCEPTION USING ERRCODE = 'IT030',
            MESSAGE = format('%s of %s turns of topic %L were fenced off: their claims are not held any more',
                             cardinality(keys) - moved, cardinality(keys), topic);
    END IF;
    PERFORM inturn.find_gap(t.name, k.key) FROM inturn.topic t CROSS JOIN unnest(keys) k (key)
    WHERE t.name = finish.topic AND t.numbering = 'given';
    INSERT INTO inturn.turn (topic, key, epoch, from_seq, to_seq, outcome, applier, started_at)
    SELECT finish.topic, t.key, t.epoch, t.from_seq, t.applied_seq, 'applied', finish.applier, now()
    FROM unnest(keys, epochs, from_seqs, applied_seqs) t (key, epoch, from_seq, applied_seq)
    WHERE t.applied_seq >= t.from_seq;
END
$$;
COMMENT ON FUNCTION inturn.finish IS 'Ends turns that applied what they took: moves the cursors, lets drained keys go idle.';
