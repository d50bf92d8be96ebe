CREATE FUNCTION inturn.fail(
    topic text, key text, epoch bigint, from_seq bigint, failed_seq bigint,
    error text, applier text, verdict text DEFAULT NULL, retry_after interval DEFAULT NULL,
    took interval DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
-- Ends a turn whose command failed_seq failed: records what came before it as applied, and the error on the key.
--
-- verdict: what the handler asked for: retry (after retry_after, otherwise after the usual wait), hold, skip, or
-- outage, which counts as no attempt; NULL: nothing.
-- Without hold or skip, the key is ready again after a wait (see _backoff), until the command has failed max_attempts
-- times; then the topic's on_exhausted decides: hold it, skip the command, or cancel-rest: skip all that is pending.
-- took: how long that command was at work; NULL: since the transaction began. One that took long shares no transaction
-- with other keys when it is tried again (see _took_long).
-- failed_seq: the number that the handler had; of commands that were merged, the first one has failed with it.
-- Cursors WITH HOLD that were opened in this transaction are closed, see _close_cursors.
-- Returns the outcome: retrying, held, skipped or cancelled. The key cannot go idle here, so its callers are not
-- locked.
-- Locks nothing: the claim has locked the key's ticket.
-- Raises IT030 when this transaction does not hold the claim, or another turn was recorded since; IT031 outside READ
-- COMMITTED; IT032 for commands that are not there.
DECLARE
    was inturn.key_cursor;
BEGIN
    PERFORM inturn._require_read_committed();
    PERFORM inturn._close_cursors();
    SELECT c.* INTO was FROM inturn.ticket t JOIN inturn._find_cursor(fail.topic, fail.key) c ON c.epoch = t.epoch
    WHERE t.topic = fail.topic AND t.key = fail.key AND t.xmax = pg_current_xact_id()::xid
      AND t.epoch = greatest(fail.epoch, 0) - 1 AND t.applied_seq = greatest(from_seq, 0) - 1;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'IT030',
            MESSAGE = format('turn %s of key %L of topic %L was fenced off: its claim is not held any more',
                             epoch, key, topic);
    END IF;
    PERFORM inturn._require_commands(topic, key, from_seq, CASE WHEN failed_seq >= from_seq THEN failed_seq END);
    failed_seq := inturn._failed_seq(topic, key, epoch, from_seq, failed_seq);
    was.lost := 0; -- whoever can say so is not lost
    RETURN inturn._record_failure(was, epoch, from_seq, failed_seq,
                                  CASE WHEN failed_seq > from_seq THEN 1 ELSE was.attempts + 1 END,
                                 error, applier, least(greatest(now(), clock_timestamp() - took), clock_timestamp()),
                                 verdict, retry_after);
END
$$;
COMMENT ON FUNCTION inturn.fail(text, text, bigint, bigint, bigint, text, text, text, interval, interval) IS
    'Ends a turn whose last command failed: records the error, and what becomes of the key.';
