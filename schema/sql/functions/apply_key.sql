-- Applies the next commands of one claimed key one by one, with a SQL target, and records a failure.
-- Internal to apply_batch: for a key that is being tried again, or whose commands failed together.
--
-- When command n fails, all of this turn is rolled back and the commands before n run again: their effects stay.
-- Returns the last applied seq, or NULL after a failure, which has ended the turn.
-- Locks and raises what fail does. A cancelled query (statement_timeout) and a terminated session end the
-- transaction; they are not failures of the command.
CREATE FUNCTION inturn.apply_key(
    topic text, key text, epoch bigint, applied_seq bigint, attempt integer, max_commands integer,
    query text, applier text
) RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    stop_seq bigint := applied_seq + max_commands;
    done_seq bigint;
    commands bigint;
    failed boolean := false;
    message text; detail text; hint text; context text;
    error text;
BEGIN
    LOOP
        BEGIN
            done_seq := applied_seq;
            WHILE done_seq < stop_seq LOOP
                EXECUTE format('SELECT commands FROM (%s) AS q (keys, seqs, commands)', query)
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
        PERFORM inturn.fail(topic, key, epoch, applied_seq + 1, stop_seq + 1, error, applier);
        RETURN NULL;
    END IF;
    RETURN done_seq;
END
$$;
COMMENT ON FUNCTION inturn.apply_key IS 'Internal to apply_batch: applies the next commands of one key one by one, and records a failure.';
