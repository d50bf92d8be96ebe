CREATE FUNCTION inturn.claim(topic text, since timestamptz DEFAULT '-infinity', max_keys integer DEFAULT 1)
RETURNS TABLE (key text, applied_seq bigint, epoch bigint, attempts integer, ready_at timestamptz, lost boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
-- One for this LIMIT and these times would always seem cheaper, and be planned anew for each claim.
SET plan_cache_mode = force_generic_plan
AS $$
-- Claims ready keys of a topic, the longest ready first, and returns where each stands.
--
-- since: claim only keys that became ready at this time or later. An applier passes the ready_at of its last claim (the
-- clock hand), so that it does not walk again over the index entries of the turns before, which stay as long as any
-- snapshot is held; _begin_pass says from where on to start again.
-- lost: an applier was lost with the key in hand; appliers of inturn take it alone and by lease (see _claim_alone).
-- epoch is the number of the turn that this claim starts. A paused topic has no key to claim.
-- Locks the keys' tickets, skipping locked ones; held until the end of the transaction. Claim at its top level:
-- finish and fail do not know a claim made under a savepoint.
-- Raises IT014 when the topic is granted to other appliers only.
-- Every row is a key: rows of commands are never locked, so no command gets ahead of a locked one of its key.
DECLARE
    -- A variable, not a call in the query: a volatile function cannot bound an index scan, and the scan would
    -- run over every key that waits for its next attempt.
    now constant timestamptz := clock_timestamp();
BEGIN
    IF EXISTS (SELECT FROM inturn.topic_grant g WHERE g.topic = claim.topic AND g.role = 'applier') THEN
        PERFORM inturn._require_grant(topic, 'applier');
    END IF;
    RETURN QUERY
    SELECT t.key, t.applied_seq, t.epoch + 1,
           CASE WHEN t.marked THEN coalesce((
               SELECT m.attempts FROM inturn.key_mark m
               WHERE m.topic = t.topic AND m.key = t.key AND m.epoch = t.epoch), 0) ELSE 0 END,
           t.ready_at,
           t.marked AND (
               SELECT m.claimed_by IS NOT NULL OR m.lost > 0 FROM inturn.key_mark m
               WHERE m.topic = t.topic AND m.key = t.key AND m.epoch = t.epoch) IS TRUE
    FROM inturn.ticket t
    WHERE t.topic COLLATE "POSIX" = claim.topic AND t.ready_at >= since AND t.ready_at <= now
      AND NOT EXISTS (SELECT FROM inturn.topic p
                      WHERE p.name = claim.topic AND p.paused_at IS NOT NULL
                        AND now < coalesce(p.paused_until, 'infinity'))
    ORDER BY t.ready_at LIMIT CASE WHEN max_keys > 0 THEN max_keys ELSE 0 END
    FOR UPDATE OF t SKIP LOCKED;
END
$$;
COMMENT ON FUNCTION inturn.claim(text, timestamptz, integer) IS
    'Claims ready keys of a topic until the end of the transaction.';
