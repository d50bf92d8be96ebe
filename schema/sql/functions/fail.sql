-- Ends a turn whose command failed_seq failed: records what came before it as applied, and the error on the key.
--
-- The key is ready again after an exponential backoff with jitter (between half and the whole of
-- backoff_base * 2^(attempts - 1), up to backoff_cap), or held once the command has failed max_attempts times.
-- Returns 'retrying' or 'held'. The key cannot go idle here, so its callers are not locked.
-- Locks the key's row in key_cursor, which the claim has locked already.
-- Raises IT030 when this transaction does not hold the claim, or another turn was recorded since; IT031 outside READ COMMITTED.
CREATE FUNCTION inturn.fail(
    topic text, key text, epoch bigint, from_seq bigint, failed_seq bigint,
    error text, applier text
) RETURNS text
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    settings inturn.topic;
    failures integer;
    wait interval;
    outcome text;
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
    outcome := CASE WHEN failures >= settings.max_attempts THEN 'held' ELSE 'retrying' END;
    wait := make_interval(secs => (0.5 + random() / 2) * least(
        extract(epoch FROM settings.backoff_cap)::double precision,
        extract(epoch FROM settings.backoff_base)::double precision * power(2, least(failures - 1, 60))));

    UPDATE inturn.key_cursor c SET
        applied_seq = failed_seq - 1, epoch = fail.epoch, attempts = failures, empty_turns = 0,
        last_error = left(error, 8000), failed_at = clock_timestamp(),
        ready_at = CASE outcome WHEN 'retrying' THEN clock_timestamp() + wait END,
        held_at = CASE outcome WHEN 'held' THEN clock_timestamp() END
    WHERE c.topic = fail.topic AND c.key = fail.key;
    INSERT INTO inturn.turn (topic, key, epoch, from_seq, to_seq, outcome, applier, started_at, error)
    VALUES (topic, key, epoch, from_seq, failed_seq - 1, outcome, applier, now(), left(error, 8000));
    RETURN outcome;
END
$$;
COMMENT ON FUNCTION inturn.fail IS 'Ends a turn whose last command failed: records the error, sets the next attempt or holds the key.';
