-- Starts a lease on a key that this transaction has claimed, and returns its row; NULL when there is nothing to do on it.
-- Internal to claim.
--
-- A lease that ran out on the key counts as a failed attempt of its next command: one that kills every applier is held
-- at last, as any other. Without a command to apply the claim is an empty turn, and ends here: not by finish, which does
-- not know a claim that a client has made under a savepoint.
-- Locks what settle_key locks. Raises what lease_end raises.
CREATE FUNCTION inturn.begin_lease(
    settings inturn.topic, key text, applied_seq bigint, epoch bigint, lease interval, applier text
) RETURNS inturn.key_cursor
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    was inturn.key_cursor;
    leased inturn.key_cursor;
    until constant timestamptz := inturn.lease_end(settings, lease);
BEGIN
    IF NOT EXISTS (SELECT FROM inturn.next_commands(settings.name, begin_lease.key, begin_lease.applied_seq, 1)) THEN
        UPDATE inturn.key_cursor c SET
            attempts = 0, last_error = NULL, failed_at = NULL, paused_at = NULL, paused_until = NULL,
            claimed_by = NULL, claimed_at = NULL, lease_until = NULL, empty_turns = c.empty_turns + 1
        WHERE c.topic = settings.name AND c.key = begin_lease.key;
        PERFORM inturn.settle_key(settings.name, begin_lease.key);
        RETURN NULL;
    END IF;
    SELECT * INTO was FROM inturn.key_cursor c WHERE c.topic = settings.name AND c.key = begin_lease.key;
    IF was.claimed_by IS NOT NULL AND inturn.record_failure(
        was, was.epoch, was.applied_seq + 1, was.applied_seq + 1, was.attempts + 1,
        format('the lease of %s ran out at %s before the command was recorded', was.claimed_by,
               to_char(was.lease_until AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"')),
        was.claimed_by, was.claimed_at, NULL, '0') <> 'retrying' THEN
        RETURN NULL;
    END IF;
    UPDATE inturn.key_cursor c SET
        epoch = begin_lease.epoch, claimed_by = begin_lease.applier, claimed_at = clock_timestamp(),
        lease_until = until, ready_at = until,
        empty_turns = 0, paused_at = NULL, paused_until = NULL, waiting_at = NULL
    WHERE c.topic = settings.name AND c.key = begin_lease.key RETURNING * INTO leased;
    RETURN leased;
END
$$;
COMMENT ON FUNCTION inturn.begin_lease IS 'Internal to claim: starts a lease on a key.';
