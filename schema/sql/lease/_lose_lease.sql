-- Records that an applier was lost with a key in hand: its lease ran out, or its connection broke. Returns lost, or the
-- outcome of a failure. Internal.
--
-- The first loss is suspicion: other keys were in hand too, and any of them may have been the cause. So it counts as no
-- attempt, and the key is taken alone from now on, or in ever smaller company (see _find_company). A loss while it was
-- alone is a failed attempt of its next command.
-- error: what is known of the cause; NULL: nothing but that the lease ran out. What was noted during the lease counts
-- more, and is a failed attempt (see _blame_alone). The caller has locked the key's ticket.
-- Locks the row of the applier, if nobody has (see _note_end).
CREATE FUNCTION inturn._lose_lease(was inturn.key_cursor, error text) RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    reason constant text := coalesce(error, format(
        'the lease of %s ran out at %s before the command was recorded', was.claimed_by,
        to_char(was.lease_until AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"')));
    cursor inturn.key_cursor := was;
BEGIN
    PERFORM inturn._note_end(was.claimed_by);
    IF was.failed_at > was.claimed_at THEN
        cursor.lost := 1; -- to be taken alone again
        RETURN inturn._record_failure(cursor, was.epoch, was.applied_seq + 1, was.applied_seq + 1, was.attempts + 1,
                                      was.last_error,
                                      was.claimed_by, was.claimed_at, NULL, NULL);
    ELSIF was.lost > 1 THEN
        RETURN inturn._record_failure(was, was.epoch, was.applied_seq + 1, was.applied_seq + 1,
                                      was.attempts + 1, reason,
                                      was.claimed_by, was.claimed_at, NULL, NULL);
    END IF;
    cursor.lost := was.lost + 1;
    cursor.last_error := left(reason, 8000); cursor.failed_at := clock_timestamp();
    cursor.claimed_by := NULL; cursor.claimed_at := NULL; cursor.lease_until := NULL;
    cursor.ready_at := inturn._next_ready_at(cursor, clock_timestamp());
    PERFORM inturn._save_key(was, cursor);
    INSERT INTO inturn.turn (topic, key, epoch, from_seq, to_seq, applied_seq, drained, outcome, applier,
                             started_at, error)
    VALUES (was.topic, was.key, was.epoch, was.applied_seq + 1, was.applied_seq, was.applied_seq, false, 'lost',
            was.claimed_by, was.claimed_at, left(reason, 8000))
    ON CONFLICT ON CONSTRAINT turn_pkey DO UPDATE SET
        outcome = EXCLUDED.outcome, error = EXCLUDED.error, finished_at = EXCLUDED.finished_at;
    RETURN 'lost';
END
$$;
COMMENT ON FUNCTION inturn._lose_lease IS 'Internal: records that an applier was lost with a key in hand.';
