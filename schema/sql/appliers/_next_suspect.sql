-- Returns when the next suspect of these topics is ready, among those that were put off because their process had
-- another key in hand (see _begin_lease, _claim_alone). due: NULL when none is, within the 100 ms that they are put
-- off.
-- Internal to the appliers: a drain goes on until such keys are applied. Takes no locks.
--
-- A key that has failed since the drain began is left out: its next attempt is for the next run. So is one by whose
-- lease somebody is at work (one that has run out makes a suspect: _claim_alone puts that off as it is), one that is
-- held, paused or waiting, and a paused topic. began_at: when the drain began. A loss is a failure only if it counted
-- as an attempt.
-- since: what was looked_at before the last claim that found nothing: what was ready then is in somebody else's hands.
-- NULL: from now on; then the caller claims and asks once more. looked_at: to be given to the next call.
-- Raises IT014 for a topic that is granted to other appliers only.
CREATE FUNCTION inturn._next_suspect(
    topics text[], since timestamptz, began_at timestamptz, OUT looked_at timestamptz, OUT due timestamptz
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off
AS $$
BEGIN
    looked_at := clock_timestamp();
    PERFORM inturn._require_grant(g.topic, 'applier') FROM inturn.topic_grant g
    WHERE g.topic = ANY (topics) AND g.role = 'applier';
    SELECT min(s.ready_at) INTO due FROM unnest(topics) t (topic) CROSS JOIN LATERAL (
        SELECT c.ready_at FROM inturn.ticket c
        WHERE c.topic COLLATE "POSIX" = t.topic
          AND c.ready_at > coalesce(since, looked_at) AND c.ready_at <= looked_at + interval '100 ms' AND c.marked
          AND (SELECT CASE WHEN m.claimed_by IS NULL THEN m.lost > 0 ELSE m.lease_until <= looked_at END
                  AND (m.attempts = 0 OR m.failed_at < began_at OR EXISTS (
                      SELECT FROM inturn.turn u
                      WHERE u.topic = m.topic AND u.key = m.key AND u.epoch = m.epoch AND u.outcome = 'lost'))
                  AND num_nonnulls(m.held_at, m.paused_at, m.waiting_at) = 0
               FROM inturn.key_mark m WHERE m.topic = c.topic AND m.key = c.key AND m.epoch = c.epoch)
          AND (SELECT p.paused_at IS NULL OR p.paused_until <= looked_at FROM inturn.topic p WHERE p.name = t.topic)
        ORDER BY c.ready_at LIMIT 1) s;
END
$$;
COMMENT ON FUNCTION inturn._next_suspect IS
    'Internal to the appliers: when the next suspect is ready that was put off.';
