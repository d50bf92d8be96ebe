-- Applies the next commands of one claimed key one by one, with a SQL target, and records a failure.
-- Internal to apply_batch: for a key that is being tried again, or whose commands failed together.
--
-- When command n fails, all of this turn is rolled back and the commands before n run again: their effects stay.
-- done_seq: the last applied one. failed: the one after it failed, and that has ended the turn.
-- Locks and raises what fail does. A cancelled query (statement_timeout) and a terminated session end the
-- transaction; they are not failures of the command.
CREATE FUNCTION inturn.apply_key(
    topic text, key text, epoch bigint, applied_seq bigint, attempt integer, max_commands integer,
    target text, applier text,
    OUT done_seq bigint, OUT failed boolean
)
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    stop_seq bigint := applied_seq + max_commands;
    commands bigint;
    message text; detail text; hint text; context text;
    error text;
BEGIN
    failed := false;
    LOOP
        BEGIN
            done_seq := applied_seq;
            WHILE done_seq < stop_seq LOOP
                EXECUTE format('SELECT commands FROM (%s) AS q (keys, seqs, commands)',
                               inturn.target_query(topic, target))
                INTO commands USING topic, ARRAY[key], ARRAY[done_seq], 1, attempt;
                EXIT WHEN commands = 0;
                done_seq := done_seq + 1;
            END LOOP;
            EXIT;
        EXCEPTION WHEN assert_failure OR OTHERS THEN
            GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL,
                hint = PG_EXCEPTION_HINT, context = PG_EXCEPTION_CONTEXT;
            error := concat_ws(E'\n', format('%s (SQLSTATE %s)', message, SQLSTATE), 'DETAIL: ' || nullif(detail, ''),
                               'HINT: ' || nullif(hint, ''), 'CONTEXT: ' || nullif(split_part(context, E'\nSQL statement "SELECT commands', 1), ''));
            failed := true;
            -- Only what came before the failed command runs again; it shrinks every time round, so this ends.
            stop_seq := done_seq;
        END;
    END LOOP;
    IF failed THEN
        PERFORM inturn.fail(topic, key, epoch, applied_seq + 1, done_seq + 1, error, applier);
    END IF;
END
$$;
COMMENT ON FUNCTION inturn.apply_key IS 'Internal to apply_batch: applies the next commands of one key one by one, and records a failure.';
