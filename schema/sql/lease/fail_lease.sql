CREATE FUNCTION inturn.fail(
    topic text, key text, epoch bigint, seq bigint, error text, asks jsonb DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
-- Ends a lease whose next command failed: records the error, and what becomes of the key; see the other fail.
--
-- seq: the command. asks: what was asked for, {"verdict": "retry", "retry_after": "30 seconds"}, or hold, or skip;
-- NULL:
-- nothing. Returns the outcome. It takes fewer parameters than the other, so no call can mean both.
-- Locks the key's ticket. Raises IT032 when seq is not the next, or not there, and what _hold_lease raises.
DECLARE
    was inturn.key_cursor := inturn._hold_lease(topic, key, epoch);
    next_seq constant bigint := inturn._next_planned(topic, key, epoch, was.applied_seq);
BEGIN
    -- A failure of what is not there could neither be tried again nor be skipped.
    IF seq IS DISTINCT FROM next_seq AND seq IS DISTINCT FROM was.applied_seq + 1 OR NOT EXISTS (
        SELECT FROM inturn._next_commands(topic, key, was.applied_seq, 1)) THEN
        RAISE EXCEPTION USING ERRCODE = 'IT032',
            MESSAGE = format('command %s of key %L of topic %L is not the next: that is %s',
                             coalesce(seq::text, 'NULL'), key, topic, next_seq),
            HINT = 'Report the commands of a key one by one, in order.';
    END IF;
    was.lost := 0; -- whoever can say so is not lost
    RETURN inturn._record_failure(was, epoch, was.applied_seq + 1, was.applied_seq + 1, was.attempts + 1, error,
                                  was.claimed_by, was.claimed_at,
                                 asks ->> 'verdict', (asks ->> 'retry_after')::interval);
END
$$;
COMMENT ON FUNCTION inturn.fail(text, text, bigint, bigint, text, jsonb) IS
    'Ends a lease whose next command failed: records the error, and what becomes of the key.';
