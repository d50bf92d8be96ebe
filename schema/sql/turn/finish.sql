CREATE FUNCTION inturn.finish(
    topic text, keys text[], epochs bigint[], from_seqs bigint[], applied_seqs bigint[], applier text
) RETURNS void
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
-- Ends turns: moves each key to its last applied command and lets it go idle, or to the back of the queue.
--
-- The arrays run in parallel, an element a key claimed in this transaction. A turn that applied nothing has
-- applied_seqs = from_seqs - 1: its key is ready again a little later, doubling up to 100 ms, since a caller's
-- transaction is open on it; or it goes idle.
-- Locks the keys' rows in key_sequence, skipping those that a caller holds. From here to the commit the callers
-- of these keys wait: all handlers of a transaction run before it, and nothing after it.
-- Deferred constraints are checked first: from here on they are immediate in this transaction.
-- Raises IT030 when this transaction does not hold the claim, or another turn was recorded since; IT031 outside READ COMMITTED.
DECLARE
    given constant boolean := EXISTS (SELECT FROM inturn.topic t WHERE t.name = finish.topic AND t.numbering = 'given');
    locked boolean[];
    tickets tid[];
    marked boolean;
    drained boolean[];
    gaps boolean[];
    waited text[];
BEGIN
    PERFORM inturn._require_read_committed();
    -- What they find at COMMIT would be nobody's failure; and their locks come before those of the callers.
    SET CONSTRAINTS ALL IMMEDIATE;

    -- Rows are looked up one by one, in subqueries: see _end_turns.
    SELECT array_agg(s.locked ORDER BY t.position) INTO locked
    FROM unnest(keys) WITH ORDINALITY t (key, position) LEFT JOIN LATERAL (
        SELECT true AS locked FROM inturn.key_sequence s
        WHERE s.topic = finish.topic AND s.key = t.key FOR UPDATE SKIP LOCKED LIMIT 1) s ON true;

    -- A statement of its own, whose snapshot is newer than the locks: in the statement above, a command that
    -- was committed while it ran would be missed, and its key would sleep for good.
    SELECT array_agg(t.locked IS NOT NULL AND (
               SELECT true FROM inturn.command_log l
               WHERE l.topic = finish.topic AND l.key = t.key AND l.seq = t.applied_seq + 1) IS NULL
               ORDER BY t.position),
           CASE WHEN given THEN array_agg((
               SELECT true FROM inturn.command_log l
               WHERE l.topic = finish.topic AND l.key = t.key AND l.seq > t.applied_seq + 1 LIMIT 1) IS NOT NULL
               ORDER BY t.position) END,
           array_agg(c.ctid ORDER BY t.position), bool_or(c.marked),
           -- The keys for which somebody waits. After the claim, whose lock tells a later waiter to look again (see wait_state);
           -- a key is looked up only where anybody waits in the topic.
           array_agg(t.key) FILTER (WHERE t.applied_seq >= t.from_seq AND (
               SELECT true FROM inturn.waiter w WHERE w.topic = finish.topic AND w.until > now() LIMIT 1) AND (
               SELECT true FROM inturn.waiter w WHERE w.topic = finish.topic AND w.key = t.key AND w.until > now() LIMIT 1))
    INTO drained, gaps, tickets, marked, waited
    FROM unnest(keys, epochs, from_seqs, applied_seqs, locked) WITH ORDINALITY
        t (key, epoch, from_seq, applied_seq, locked, position)
    -- Only what this transaction has claimed, whose lock is in xmax: if a handler ended the transaction and
    -- began another, the claim went with it.
    LEFT JOIN LATERAL (
        SELECT c.ctid, c.marked FROM inturn.ticket c
        WHERE c.topic = finish.topic AND c.key = t.key AND c.epoch = t.epoch - 1 AND c.applied_seq = t.from_seq - 1
          AND c.xmax = pg_current_xact_id()::xid LIMIT 1) c ON true;
    IF array_position(tickets, NULL) IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'IT030',
            MESSAGE = format('%s of %s turns of topic %L were fenced off: their claims are not held any more',
                             cardinality(array_positions(tickets, NULL)), cardinality(keys), topic);
    END IF;

    IF marked THEN
        PERFORM inturn._clear_marks(topic, keys, epochs, drained, from_seqs, applied_seqs);
    END IF;
    PERFORM inturn._end_turns(topic, keys, tickets,
                             CASE WHEN given THEN ARRAY(SELECT d AND NOT g FROM unnest(drained, gaps) t (d, g)) ELSE drained END,
                             epochs, from_seqs, applied_seqs, applier);
    IF waited IS NOT NULL THEN
        PERFORM inturn._notify_waiters(topic, waited);
    END IF;
    IF given THEN
        PERFORM inturn._wait_for_gap(topic, t.key) FROM unnest(keys, drained, gaps) t (key, drained, gap) WHERE t.drained AND t.gap;
    END IF;
END
$$;
COMMENT ON FUNCTION inturn.finish IS 'Ends turns that applied what they took: moves the keys on, lets drained ones go idle.';
