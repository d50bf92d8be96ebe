-- Applies the next commands of a key that was claimed alone (see _claim_alone), with a SQL target, and ends the turn.
-- Internal to the appliers.
--
-- Each command under a savepoint of its own; the first that fails ends the turn, and what came before it stays. A cancelled
-- query fails the command in hand too: cancellation is what it says, for the caller to end after the commit.
-- Begins no further command once it has lasted a second. failures: 0 too when the command only asked to be skipped.
-- Locks what the target and _end_alone lock. Raises what they raise: then nothing was changed.
CREATE FUNCTION inturn._apply_alone(
    topic text, key text, epoch bigint,
    OUT commands bigint, OUT failures integer, OUT skipped bigint, OUT cancellation text
)
LANGUAGE plpgsql VOLATILE
-- No SET clauses: they would reach into the target.
AS $$
DECLARE
    settings constant inturn.topic := inturn._sql_topic(topic);
    was constant inturn.key_cursor := inturn._hold_lease(topic, key, epoch);
    last_seq constant bigint := was.applied_seq + CASE WHEN was.attempts > 0 OR was.lost > 0 THEN 1 ELSE least(settings.batch_commands, 50) END;
    leave_at constant timestamptz := clock_timestamp() + interval '1 s';
    done_seq bigint := was.applied_seq;
    number bigint;
    next_seq bigint;
    message text; detail text; hint text; context text; state text;
    asked record;
    error text;
    outcome text;
BEGIN
    failures := 0; skipped := 0; cancellation := NULL;
    asked := inturn._read_verdict(NULL, NULL);
    IF NOT inturn._plan_alone(settings, was, (last_seq - was.applied_seq)::integer) THEN
        commands := 0; failures := 1;
        RETURN;
    END IF;
    WHILE done_seq < last_seq AND (done_seq = was.applied_seq OR clock_timestamp() < leave_at) LOOP
        next_seq := done_seq + 1;
        IF settings.merges THEN
            SELECT coalesce(max(p.to_seq), next_seq) INTO next_seq FROM inturn.merge_plan p
            WHERE p.topic = _apply_alone.topic AND p.key = _apply_alone.key AND p.epoch = _apply_alone.epoch AND p.seq = next_seq;
        END IF;
        BEGIN
            EXECUTE format('SELECT commands FROM (%s) AS q (seqs, commands)', inturn._target_query(topic, settings.target, settings.merges))
            INTO number USING topic, ARRAY[key], ARRAY[done_seq], (next_seq - done_seq)::integer, was.attempts + 1, timestamptz 'infinity', ARRAY[epoch];
            EXIT WHEN number = 0;
            PERFORM inturn._check_effects();
        EXCEPTION WHEN query_canceled OR assert_failure OR OTHERS THEN
            GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT,
                context = PG_EXCEPTION_CONTEXT, state = RETURNED_SQLSTATE;
            cancellation := CASE state WHEN '57014' THEN message END;
            asked := inturn._read_verdict(state, detail);
            error := inturn._failure_text(state, message, detail, hint, context, asked.verdict IS NOT NULL, asked.problem);
            EXIT;
        END;
        done_seq := next_seq;
    END LOOP;
    commands := done_seq - was.applied_seq;
    outcome := inturn._end_alone(topic, key, epoch, done_seq, error, asked.verdict, asked.retry_after);
    IF error IS NOT NULL THEN
        failures := CASE WHEN asked.verdict = 'skip' THEN 0 ELSE 1 END;
        SELECT count(*) INTO skipped FROM inturn.skip s
        WHERE outcome IN ('skipped', 'cancelled')
          AND s.topic = _apply_alone.topic AND s.key = _apply_alone.key AND s.seq > done_seq AND s.epoch = _apply_alone.epoch;
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._apply_alone IS 'Internal to the appliers: applies the next commands of a key that was claimed alone.';
