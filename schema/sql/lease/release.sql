CREATE FUNCTION inturn.release(topic text, key text, epoch bigint) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
-- Ends a lease after the last recorded command: the key goes idle, or to the back of the queue.
--
-- What was merged into nothing after the last command is done with it.
-- Locks, in this order: the key's ticket; its row in key_sequence, if no caller holds it. Raises what _hold_lease
-- raises.
DECLARE
    was constant inturn.key_cursor := inturn._hold_lease(topic, key, epoch);
    cursor inturn.key_cursor := was;
BEGIN
    cursor.applied_seq := inturn._past_nothing(topic, key, epoch, was.applied_seq);
    IF cursor.applied_seq > was.applied_seq THEN
        UPDATE inturn.turn t SET to_seq = cursor.applied_seq, applied_seq = cursor.applied_seq,
                                 finished_at = clock_timestamp()
        WHERE t.topic = release.topic AND t.key = release.key AND t.epoch = release.epoch
          AND t.to_seq = was.applied_seq;
        IF NOT FOUND THEN
            cursor.applied_seq := was.applied_seq;
        END IF;
    END IF;
    cursor.claimed_by := NULL; cursor.claimed_at := NULL; cursor.lease_until := NULL;
    PERFORM inturn._requeue(was, cursor);
END
$$;
COMMENT ON FUNCTION inturn.release IS 'Ends a lease after the last recorded command.';
