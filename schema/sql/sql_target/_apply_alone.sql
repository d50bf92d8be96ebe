-- Applies the next commands of a key that was claimed alone (see _claim_alone), with a SQL target, and ends the turn.
-- Internal to the appliers.
--
-- most: how many, as _hold_alone says. Each command under a savepoint of its own; the first that fails ends the turn,
-- and what came before it stays. A cancelled query fails the command in hand too: cancellation is what it says, for the
-- caller to end after the commit.
-- outage: the failure looks like one of what commands need (see _outage_of): with judged, it is for the caller to
-- record by _end_alone. answered: it was for a reason of the command's own.
-- Begins no further command after _begin_until. failures: 0 too when the command only asked to be skipped.
-- Locks what the target and _end_alone lock. Raises what they raise: then nothing was changed. So it does where a part
-- of the schema is gone because an upgrade has committed meanwhile.
CREATE FUNCTION inturn._apply_alone(
    topic text, key text, epoch bigint, judged boolean, most integer,
    OUT commands bigint, OUT failures integer, OUT skipped bigint, OUT cancellation text, OUT outage jsonb,
    OUT answered boolean
)
LANGUAGE plpgsql VOLATILE
-- Neither pinned nor with other settings, which would reach into the target: all is qualified.
AS $$
DECLARE
    settings constant inturn.topic := inturn._sql_topic(topic);
    was constant inturn.key_cursor := inturn._hold_lease(topic, key, epoch);
    last_seq constant bigint := was.applied_seq OPERATOR(pg_catalog.+) most;
    leave_at constant timestamp with time zone := inturn._begin_until(); began_at timestamp with time zone;
    done_seq bigint := was.applied_seq; number bigint; next_seq bigint;
    message pg_catalog.text; detail pg_catalog.text; hint pg_catalog.text; context pg_catalog.text;
    state pg_catalog.text; asked pg_catalog.record; error pg_catalog.text; took interval;
    revision constant pg_catalog.text := inturn._revision(); me constant pg_catalog.name := current_user;
BEGIN
    failures := 0; skipped := 0; answered := false; asked := inturn._read_verdict(NULL, NULL);
    IF NOT inturn._plan_alone(settings, was, most) THEN
        commands := 0; failures := 1; RETURN;
    END IF;
    WHILE done_seq OPERATOR(pg_catalog.<) last_seq
        AND (done_seq OPERATOR(pg_catalog.=) was.applied_seq
             OR pg_catalog.clock_timestamp() OPERATOR(pg_catalog.<) leave_at) LOOP
        next_seq := done_seq OPERATOR(pg_catalog.+) 1; began_at := pg_catalog.clock_timestamp();
        next_seq := CASE WHEN settings.merges THEN inturn._planned_end(topic, key, epoch, next_seq) ELSE next_seq END;
        BEGIN
            EXECUTE pg_catalog.format('SELECT commands FROM (%s) AS q (keys, seqs, commands)',
                                      inturn._target_query(settings, '_turn_commands'))
            INTO number USING topic, ARRAY[key], ARRAY[epoch], ARRAY[done_seq],
                              (next_seq OPERATOR(pg_catalog.-) done_seq)::integer,
                              was.attempts OPERATOR(pg_catalog.+) 1, timestamp with time zone 'infinity';
            EXIT WHEN number OPERATOR(pg_catalog.=) 0;
            IF current_user OPERATOR(pg_catalog.<>) me THEN
                RAISE invalid_role_specification
                    USING MESSAGE = pg_catalog.format('the command left the role set to %I', current_user),
                    HINT = 'The next one would run as it. Let it RESET ROLE, or set the role in the SET clause of its '
                           'function.';
            END IF;
            PERFORM inturn._check_effects();
        EXCEPTION WHEN query_canceled OR assert_failure OR OTHERS THEN
            IF pg_catalog.starts_with(SQLSTATE, '42') AND inturn._revision() OPERATOR(pg_catalog.<>) revision THEN
                RAISE;
            END IF;
            GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT,
                context = PG_EXCEPTION_CONTEXT, state = RETURNED_SQLSTATE;
            cancellation := CASE WHEN state OPERATOR(pg_catalog.=) '57014' THEN message END;
            asked := inturn._read_verdict(state, detail);
            took := pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) began_at;
            error := inturn._failure_text(state, message, detail, hint, context, asked.verdict IS NOT NULL,
                                          asked.problem);
            EXIT;
        END;
        done_seq := next_seq;
    END LOOP;
    commands := done_seq OPERATOR(pg_catalog.-) was.applied_seq;
    outage := inturn._outage_of(state, message, key, epoch, NULL, done_seq OPERATOR(pg_catalog.+) 1, error, took);
    PERFORM inturn._end_alone(topic, key, epoch, done_seq, error, asked.verdict, asked.retry_after, took)
    WHERE outage IS NULL OR NOT judged;
    IF error IS NOT NULL THEN
        answered := outage IS NULL AND coalesce(asked.verdict, '') OPERATOR(pg_catalog.<>) 'outage';
        failures := CASE WHEN asked.verdict OPERATOR(pg_catalog.=) 'skip' THEN 0 ELSE 1 END;
        skipped := inturn._count_skipped(topic, key, done_seq OPERATOR(pg_catalog.+) 1, epoch);
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._apply_alone IS
    'Internal to the appliers: applies the next commands of a key that was claimed alone.';
