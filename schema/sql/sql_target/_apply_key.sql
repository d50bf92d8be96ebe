-- Applies the next commands of one claimed key one by one, with a SQL target, and records a failure.
-- Internal to apply_batch: for a key that is being tried again, or whose commands failed together.
--
-- When command n fails, all of this turn is rolled back and the commands before n run again: their effects stay.
-- What it asks for is in its SQLSTATE (see _read_verdict). Begins no further command after _begin_until, except those
-- that run again.
-- done_seq: the last applied one. outcome: the one after it failed, and fail has ended the turn, with this outcome;
-- NULL: none failed. failures: 1 then, 0 when it only asked to be skipped. skipped: how many fail has skipped.
-- outage: the failure looks like one of what commands need (see _outage_of): with judged, it is for the caller to
-- record, and the outcome is outage. answered: the failure was for a reason of the command's own.
-- cancellation: what a cancelled query says (statement_timeout): the command, which is tried again, has failed by it,
-- and no timeout is in force any more. At a first attempt that is raised: what ran before has used up the time.
-- Locks and raises what fail does. A terminated session ends the transaction: the command is not to blame for it. Nor
-- is that a part of the schema is gone because an upgrade has committed meanwhile: that is raised.
CREATE FUNCTION inturn._apply_key(
    topic text, key text, epoch bigint, applied_seq bigint, attempt integer, max_commands integer,
    settings inturn.topic, applier text, judged boolean,
    OUT done_seq bigint, OUT outcome text, OUT failures integer, OUT skipped bigint, OUT cancellation text,
    OUT outage jsonb, OUT answered boolean
)
LANGUAGE plpgsql VOLATILE
-- Neither pinned nor with other settings, which would reach into the target: all is qualified.
AS $$
DECLARE
    stop_seq bigint := applied_seq OPERATOR(pg_catalog.+) max_commands;
    leave_at timestamp with time zone := inturn._begin_until(); began_at timestamp with time zone; took interval;
    commands bigint;
    message pg_catalog.text; detail pg_catalog.text; hint pg_catalog.text; context pg_catalog.text;
    state pg_catalog.text; error pg_catalog.text;
    asked pg_catalog.record;
    revision constant pg_catalog.text := inturn._revision();
    me constant pg_catalog.name := current_user;
BEGIN
    failures := 0; skipped := 0; answered := false;
    LOOP
        BEGIN
            done_seq := applied_seq;
            WHILE done_seq OPERATOR(pg_catalog.<) stop_seq LOOP
                began_at := pg_catalog.clock_timestamp();
                EXECUTE pg_catalog.format('SELECT commands FROM (%s) AS q (keys, seqs, commands)',
                                          inturn._target_query(settings, '_turn_commands'))
                INTO commands USING topic, ARRAY[key], ARRAY[epoch], ARRAY[done_seq], 1, attempt,
                    timestamp with time zone 'infinity';
                EXIT WHEN commands OPERATOR(pg_catalog.=) 0;
                IF current_user OPERATOR(pg_catalog.<>) me THEN
                    RAISE invalid_role_specification
                        USING MESSAGE = pg_catalog.format('the command left the role set to %I', current_user),
                        HINT = 'The next one would run as it. Let it RESET ROLE, or set the role in the SET clause of '
                               'its function.';
                END IF;
                PERFORM inturn._check_effects();
                done_seq := done_seq OPERATOR(pg_catalog.+) 1;
                EXIT WHEN pg_catalog.clock_timestamp() OPERATOR(pg_catalog.>=) leave_at;
            END LOOP;
            EXIT;
        EXCEPTION WHEN query_canceled OR assert_failure OR OTHERS THEN
            took := pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) began_at;
            IF SQLSTATE OPERATOR(pg_catalog.=) '57014' AND attempt OPERATOR(pg_catalog.=) 1
               OR pg_catalog.starts_with(SQLSTATE, '42') AND inturn._revision() OPERATOR(pg_catalog.<>) revision THEN
                RAISE;
            END IF;
            GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL,
                hint = PG_EXCEPTION_HINT, context = PG_EXCEPTION_CONTEXT, state = RETURNED_SQLSTATE;
            cancellation := CASE WHEN SQLSTATE OPERATOR(pg_catalog.=) '57014' THEN message ELSE cancellation END;
            asked := inturn._read_verdict(SQLSTATE, detail);
            error := inturn._failure_text(SQLSTATE, message, detail, hint, context, asked.verdict IS NOT NULL,
                                          asked.problem);
            -- Only what came before the failed command runs again; it shrinks every time round, so this ends.
            stop_seq := done_seq;
            leave_at := 'infinity';
        END;
    END LOOP;
    IF error IS NOT NULL THEN
        failures := CASE WHEN asked.verdict OPERATOR(pg_catalog.=) 'skip' THEN 0 ELSE 1 END;
        outage := inturn._outage_of(state, message, key, epoch, applied_seq OPERATOR(pg_catalog.+) 1,
                                    done_seq OPERATOR(pg_catalog.+) 1, error, took);
        answered := outage IS NULL AND coalesce(asked.verdict, '') OPERATOR(pg_catalog.<>) 'outage';
        outcome := CASE WHEN outage IS NOT NULL AND judged THEN 'outage' ELSE
            inturn.fail(topic, key, epoch, applied_seq OPERATOR(pg_catalog.+) 1, done_seq OPERATOR(pg_catalog.+) 1,
                        error, applier, asked.verdict, asked.retry_after, took) END;
        skipped := inturn._count_skipped(topic, key, done_seq OPERATOR(pg_catalog.+) 1, epoch);
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._apply_key IS
    'Internal to apply_batch: applies the next commands of one key one by one, and records a failure.';
