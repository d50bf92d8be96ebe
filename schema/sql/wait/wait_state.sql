CREATE FUNCTION inturn.wait_state(
    topic text, key text, INOUT seq bigint DEFAULT NULL, idempotency_key text DEFAULT NULL,
    INOUT mark bigint DEFAULT NULL,
    OUT outcome text, OUT applied_seq bigint, OUT skipped boolean, OUT state text, OUT since timestamptz,
    OUT in_hand boolean, OUT says text
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
-- Says whether a key has been applied up to a number, or what keeps it: one look, for clients that LISTEN meanwhile, as
-- the inturn package does. wait() does the whole.
--
-- seq: up to where; NULL: up to the command with that idempotency key, or up to everything that is committed on the key
-- now.
-- Both come back with what is known by then: give the next look the seq and the mark that the last one returned.
-- outcome: applied; pending; or held: the key stands still until an operator acts. skipped: command seq itself was
-- skipped; one that was merged, into nothing too, counts as applied: see the view merge.
-- state, since: of the key, as key_state has it, or topic paused. says: the same in words, where it is not applied.
-- in_hand: a transaction had the key in hand that may have looked for waiters before this wait was announced: look
-- again soon, until none has. Whoever takes the key in hand later sees the announcement, and notifies.
-- Takes no locks. Raises IT001, IT002, IT005, IT014; IT040 without a seq when nothing was ever committed; 22023 for a
-- seq below 0.
DECLARE
    settings inturn.topic;
    c inturn.key_cursor;
BEGIN
    PERFORM inturn._refuse_command(topic, key, 'wait', NULL, idempotency_key);
    PERFORM inturn._require_sight(topic);
    IF seq < 0 THEN
        RAISE EXCEPTION USING ERRCODE = '22023',
            MESSAGE = format('seq is %s; commands are numbered from 0 or 1 on', seq);
    ELSIF seq IS NULL THEN
        SELECT g.goal, g.mark INTO seq, mark FROM inturn._find_goal(topic, key, idempotency_key, mark) g;
    END IF;
    SELECT * INTO settings FROM inturn.topic t WHERE t.name = wait_state.topic;
    SELECT * INTO c FROM inturn._find_cursor(wait_state.topic, wait_state.key) k;
    -- A key that was forgotten has had its numbers: if it comes back, it goes on above them (see _begin_keys).
    applied_seq := coalesce(c.applied_seq, (SELECT f.seq FROM inturn.forgotten f WHERE f.topic = wait_state.topic),
                            settings.first_seq - 1);
    skipped := coalesce((SELECT true FROM inturn.skip s
                         WHERE s.topic = wait_state.topic AND s.key = wait_state.key
                           AND s.seq = wait_state.seq), false);
    state := coalesce(inturn._seen_state(c), 'idle'); -- within wait() the statement began when the wait did
    since := CASE state WHEN 'held' THEN c.held_at WHEN 'paused' THEN c.paused_at WHEN 'leased' THEN c.claimed_at
                        WHEN 'waiting' THEN c.waiting_at WHEN 'retrying' THEN c.failed_at END;
    IF state NOT IN ('held', 'paused') AND settings.paused_at IS NOT NULL
        AND clock_timestamp() < coalesce(settings.paused_until, 'infinity') THEN
        state := 'topic paused'; since := settings.paused_at;
    END IF;
    outcome := CASE WHEN seq <= applied_seq THEN 'applied' WHEN state = 'held' THEN 'held' ELSE 'pending' END;
    in_hand := coalesce((SELECT inturn._is_in_hand(t.xmax) FROM inturn.ticket t
                         WHERE t.topic = wait_state.topic AND t.key = wait_state.key AND t.epoch >= coalesce(c.epoch, 0)
                         ORDER BY t.epoch DESC LIMIT 1), false);
    says := CASE WHEN outcome <> 'applied' THEN inturn._describe_standing(
        topic, key, seq, idempotency_key, c.key IS NOT NULL OR coalesce(mark, 0) > 0, applied_seq, state, since) END;
END
$$;
COMMENT ON FUNCTION inturn.wait_state IS 'Whether a key has been applied up to a number, or what keeps it.';
