-- Ends turns whose deferred constraints finish has checked: says what became of each key. Internal to finish.
--
-- Locks and raises what finish does.
CREATE FUNCTION inturn._finish(
    topic text, keys text[], epochs bigint[], from_seqs bigint[], applied_seqs bigint[], applier text
) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
-- For few keys one of their own would always seem cheaper, and be planned anew for each turn.
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    given constant boolean := EXISTS (SELECT FROM inturn.topic t WHERE t.name = topic AND t.numbering = 'given');
    locked boolean[]; drained boolean[]; gaps boolean[]; tickets tid[]; waited text[]; marked boolean; missing boolean;
BEGIN
    -- No claim has these, and sums with the ends of bigint would not fit.
    IF -1 >= ANY (epochs) OR -1 >= ANY (from_seqs) OR 9223372036854775807 = ANY (applied_seqs) THEN
        RAISE EXCEPTION USING ERRCODE = 'IT030',
            MESSAGE = format('turns of topic %L were fenced off: no claim has such numbers', topic);
    END IF;
    -- Rows are looked up one by one, in subqueries: see _end_turns.
    SELECT array_agg(s.locked ORDER BY t.position) INTO locked
    FROM unnest(keys) WITH ORDINALITY t (key, position) LEFT JOIN LATERAL (
        SELECT true AS locked FROM inturn.key_sequence s
        WHERE s.topic = _finish.topic AND s.key >= t.key AND s.key <= t.key
        ORDER BY s.key DESC LIMIT 1 FOR UPDATE SKIP LOCKED) s ON true;

    -- A statement of its own, whose snapshot is newer than the locks: in the statement above, a command that
    -- was committed while it ran would be missed, and its key would stay idle for good.
    SELECT array_agg(t.locked IS NOT NULL AND l.next IS NOT TRUE ORDER BY t.position),
           CASE WHEN given THEN array_agg((SELECT true FROM inturn.command_log l
               WHERE l.topic = _finish.topic AND l.key = t.key AND l.seq > t.applied_seq + 1 LIMIT 1) IS NOT NULL
               ORDER BY t.position) END,
           array_agg(c.ctid ORDER BY t.position), bool_or(c.marked),
           -- What is reported as applied is there: otherwise the next append would continue above it.
           bool_or(t.applied_seq >= t.from_seq AND l.there IS NOT TRUE OR t.applied_seq < t.from_seq - 1),
           -- The keys for which somebody waits. After the claim, whose lock tells a later waiter to look again (see
           -- wait_state); a key is looked up only where anybody waits in the topic: in the order of that index, or a
           -- plan of when few waited takes the keys' and walks over all who have.
           array_agg(t.key) FILTER (WHERE t.applied_seq >= t.from_seq AND (SELECT true FROM inturn.waiter w
               WHERE w.topic = _finish.topic AND w.until > now() ORDER BY w.until DESC LIMIT 1)
               AND (SELECT true FROM inturn.waiter w
                    WHERE w.topic = _finish.topic AND w.key = t.key AND w.until > now() LIMIT 1))
    INTO drained, gaps, tickets, marked, missing, waited
    FROM unnest(keys, epochs, from_seqs, applied_seqs, locked) WITH ORDINALITY
        t (key, epoch, from_seq, applied_seq, locked, position)
    -- Only what this transaction has claimed, whose lock is in xmax: if a handler ended the transaction and
    -- began another, the claim went with it.
    LEFT JOIN LATERAL (
        SELECT c.ctid, c.marked FROM inturn.ticket c
        WHERE c.topic = _finish.topic AND c.key = t.key AND c.epoch = t.epoch - 1 AND c.applied_seq = t.from_seq - 1
          AND c.xmax = pg_current_xact_id()::xid LIMIT 1) c ON true
    CROSS JOIN LATERAL (
        SELECT bool_or(l.seq = t.applied_seq) AS there, bool_or(l.seq > t.applied_seq) AS next FROM inturn.command_log l
        WHERE l.topic = _finish.topic AND l.key = t.key AND l.seq BETWEEN t.applied_seq AND t.applied_seq + 1) l;
    IF array_position(tickets, NULL) IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'IT030',
            MESSAGE = format('%s of %s turns of topic %L were fenced off: their claims are not held any more',
                             cardinality(array_positions(tickets, NULL)), cardinality(keys), topic);
    END IF;

    IF missing THEN
        RAISE EXCEPTION USING ERRCODE = 'IT032',
            MESSAGE = format('a turn of topic %L was reported as applied up to a command that is not there', topic),
            HINT = 'Report what the claim returned.';
    END IF;
    IF given THEN
        PERFORM inturn._require_commands(topic, t.key, t.from_seq, t.applied_seq)
        FROM unnest(keys, from_seqs, applied_seqs) t (key, from_seq, applied_seq);
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
        PERFORM inturn._wait_for_gap(topic, t.key) FROM unnest(keys, drained, gaps) t (key, d, g) WHERE t.d AND t.g;
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._finish IS 'Internal to finish: says what became of the keys of turns.';
