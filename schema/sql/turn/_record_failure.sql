-- Records a failure of command failed_seq, and what becomes of the key; returns the outcome. Internal to fail and
-- claim.
--
-- was: the key, whose ticket the caller has locked. failures: how often the command has failed by now.
-- verdict, retry_after: see fail; merge: what cannot be merged. That, and a failure of what was merged, is never the
-- last attempt:
-- the commands have not been tried as they are.
-- from_seq: where the turn began; of a lease it is in turn already.
-- Takes no further locks.
CREATE FUNCTION inturn._record_failure(
    was inturn.key_cursor, epoch bigint, from_seq bigint, failed_seq bigint, failures integer,
    error text, applier text, started_at timestamptz, verdict text, retry_after interval
) RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    settings inturn.topic;
    outcome text;
    passed_seq bigint;
    cursor inturn.key_cursor := was;
    failed_at constant timestamptz := clock_timestamp();
BEGIN
    SELECT * INTO settings FROM inturn.topic t WHERE t.name = was.topic;
    IF verdict <> 'outage' IS NOT FALSE AND EXISTS (
        SELECT FROM inturn.merge_plan p
        WHERE p.topic = was.topic AND p.key = was.key AND p.epoch = _record_failure.epoch AND p.seq = failed_seq) THEN
        verdict := 'merge';
    ELSIF verdict = 'outage' THEN
        -- The command is not at fault.
        failures := CASE WHEN failed_seq > from_seq THEN 0 ELSE was.attempts END;
    END IF;
    outcome := CASE
        WHEN verdict IN ('outage', 'merge') THEN 'retrying'
        WHEN verdict = 'hold' THEN 'held' WHEN verdict = 'skip' THEN 'skipped'
        WHEN failures < settings.max_attempts THEN 'retrying'
        WHEN settings.on_exhausted = 'hold' THEN 'held' WHEN settings.on_exhausted = 'skip' THEN 'skipped'
        WHEN settings.numbering = 'given' AND inturn._misses_many(was.topic, was.key, failed_seq) THEN 'held'
        ELSE 'cancelled' END;
    IF outcome IN ('skipped', 'cancelled') THEN
        passed_seq := inturn._pass_over(
            was.topic, was.key, failed_seq, CASE outcome WHEN 'skipped' THEN failed_seq END, epoch,
            CASE verdict WHEN 'skip' THEN 'handler' ELSE 'attempts' END, split_part(error, E'\n', 1));
    END IF;
    cursor.epoch := epoch; cursor.applied_seq := coalesce(passed_seq, failed_seq - 1); cursor.empty_turns := 0;
    cursor.claimed_by := NULL; cursor.claimed_at := NULL; cursor.lease_until := NULL; cursor.waiting_at := NULL;
    cursor.attempts := CASE WHEN passed_seq IS NULL THEN failures ELSE 0 END;
    cursor.last_error := CASE WHEN passed_seq IS NULL THEN left(error, 8000) END;
    cursor.failed_at := CASE WHEN passed_seq IS NULL THEN failed_at END;
    cursor.held_at := CASE outcome WHEN 'held' THEN failed_at END;
    IF outcome = 'held' OR inturn._stored_state(was) <> 'paused' THEN
        cursor.paused_at := NULL; cursor.paused_until := NULL;
    END IF;
    cursor.ready_at := inturn._next_ready_at(cursor, failed_at + CASE
        WHEN outcome <> 'retrying' THEN '0'
        WHEN retry_after IS NULL THEN inturn._backoff(settings, greatest(failures, 1))
        ELSE least(greatest(retry_after, '0'), '1 year') END);
    PERFORM inturn._save_key(was, cursor);
    INSERT INTO inturn.turn AS t (topic, key, epoch, from_seq, to_seq, applied_seq, drained, outcome, applier,
                                  started_at, error)
    VALUES (was.topic, was.key, _record_failure.epoch, from_seq, failed_seq - 1, cursor.applied_seq, false,
            outcome, applier,
            _record_failure.started_at, left(error, 8000))
    ON CONFLICT ON CONSTRAINT turn_pkey DO UPDATE SET
        outcome = EXCLUDED.outcome, error = EXCLUDED.error, finished_at = EXCLUDED.finished_at,
        applied_seq = EXCLUDED.applied_seq;
    RETURN outcome;
END
$$;
COMMENT ON FUNCTION inturn._record_failure IS
    'Internal to fail and claim: records a failure, and what becomes of the key.';
