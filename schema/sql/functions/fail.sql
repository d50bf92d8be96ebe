-- Ends a turn whose command failed_seq failed: records what came before it as applied, and the error on the key.
--
-- verdict: what the handler asked for: retry (after retry_after, else after the usual wait), hold, or skip; NULL: nothing.
-- Without hold or skip, the key is ready again after a wait (see backoff), until the command has failed max_attempts
-- times; then the topic's on_exhausted decides: hold it, skip the command, or cancel-rest: skip all that is pending.
-- Returns the outcome: retrying, held, skipped or cancelled. The key cannot go idle here, so its callers are not locked.
-- Locks the key's row in key_cursor, which the claim has locked already.
-- Raises IT030 when this transaction does not hold the claim, or another turn was recorded since; IT031 outside READ COMMITTED.
CREATE FUNCTION inturn.fail(
    topic text, key text, epoch bigint, from_seq bigint, failed_seq bigint,
    error text, applier text, verdict text DEFAULT NULL, retry_after interval DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    settings inturn.topic;
    failures integer;
    outcome text;
    passed_seq bigint;
BEGIN
    PERFORM inturn.require_read_committed();
    SELECT * INTO settings FROM inturn.topic t WHERE t.name = fail.topic;
    SELECT CASE WHEN failed_seq > from_seq THEN 1 ELSE c.attempts + 1 END INTO failures FROM inturn.key_cursor c
    WHERE c.topic = fail.topic AND c.key = fail.key AND c.xmax = pg_current_xact_id()::xid
      AND c.epoch = fail.epoch - 1 AND c.applied_seq = from_seq - 1;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'IT030',
            MESSAGE = format('turn %s of key %L of topic %L was fenced off: its claim is not held any more',
                             epoch, key, topic);
    END IF;
    outcome := CASE
        WHEN verdict = 'hold' THEN 'held' WHEN verdict = 'skip' THEN 'skipped'
        WHEN failures < settings.max_attempts THEN 'retrying'
        WHEN settings.on_exhausted = 'hold' THEN 'held' WHEN settings.on_exhausted = 'skip' THEN 'skipped'
        ELSE 'cancelled' END;
    IF outcome IN ('skipped', 'cancelled') THEN
        passed_seq := inturn.pass_over(topic, key, failed_seq, CASE outcome WHEN 'skipped' THEN failed_seq END, epoch,
                                       CASE verdict WHEN 'skip' THEN 'handler' ELSE 'attempts' END, split_part(error, E'\n', 1));
    END IF;

    UPDATE inturn.key_cursor c SET
        applied_seq = coalesce(passed_seq, failed_seq - 1), epoch = fail.epoch, empty_turns = 0,
        attempts = CASE WHEN passed_seq IS NULL THEN failures ELSE 0 END,
        last_error = CASE WHEN passed_seq IS NULL THEN left(error, 8000) END,
        failed_at = CASE WHEN passed_seq IS NULL THEN clock_timestamp() END,
        ready_at = CASE WHEN outcome = 'retrying' THEN clock_timestamp() + CASE
                            WHEN retry_after IS NULL THEN inturn.backoff(settings, failures)
                            ELSE least(greatest(retry_after, '0'), '1 year') END
                        WHEN outcome <> 'held' THEN clock_timestamp() END,
        held_at = CASE outcome WHEN 'held' THEN clock_timestamp() END,
        paused_at = NULL, paused_until = NULL
    WHERE c.topic = fail.topic AND c.key = fail.key;
    INSERT INTO inturn.turn (topic, key, epoch, from_seq, to_seq, outcome, applier, started_at, error)
    VALUES (topic, key, epoch, from_seq, failed_seq - 1, outcome, applier, now(), left(error, 8000));
    RETURN outcome;
END
$$;
COMMENT ON FUNCTION inturn.fail IS 'Ends a turn whose last command failed: records the error, and what becomes of the key.';
