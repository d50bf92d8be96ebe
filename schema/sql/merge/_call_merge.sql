-- Calls a merge function for two commands; returns the payload, or what went wrong. Internal to _fold_merges.
--
-- It runs with the rights of who applies, as a target does, and with its own search_path. It may read but not write
-- (25006):
-- it is called again when the turn is, so that an effect of its own would be nobody's command.
-- One that belongs to somebody else than when the rule was set is not called (IT013): the appliers have asked before
-- they claimed, see _require_merges, so that is its failure only where it has changed hands in between.
-- A cancelled query (statement_timeout) is its failure: so one that hangs is charged to the key, and the claim goes on.
-- Takes no locks of its own, and none of the function's outlasts it. Raises nothing.
CREATE FUNCTION inturn._call_merge(
    becomes text, first inturn.command, second inturn.command, max_bytes integer, OUT payload jsonb, OUT problem text
)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    state text; message text;
    function regprocedure;
    called boolean := false;
BEGIN
    BEGIN
        function := inturn._trusted_merge(first.topic, first.name, second.name);
        PERFORM set_config('transaction_read_only', 'on', true);
        EXECUTE format('SELECT %s($1, $2)', function::oid::regproc) INTO payload USING first, second;
        IF payload IS NULL THEN
            RAISE null_value_not_allowed USING MESSAGE = 'it returned NULL';
        ELSIF octet_length(payload::text) > max_bytes THEN
            RAISE program_limit_exceeded USING MESSAGE = format(
                'it returned a payload of %s bytes, over the %s that the topic allows',
                octet_length(payload::text), max_bytes);
        END IF;
        called := true;
        RAISE EXCEPTION USING ERRCODE = 'IT999'; -- the way back to a transaction that writes
    EXCEPTION
        WHEN query_canceled OR assert_failure OR OTHERS THEN
            IF called THEN
                RETURN;
            END IF;
            GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT;
            -- The time of the statement is used up: this transaction merges nothing more, as nothing would end it. By
            -- its time, so that nothing that a target leaves in the session says so of another transaction.
            PERFORM set_config('inturn.merge_cancelled', now()::text, true) WHERE state = '57014';
    END;
    payload := NULL;
    problem := format(
        E'commands %s and %s could not be merged by %s: %s (SQLSTATE %s)\nHINT: They are taken as they are; correct '
         'the function, or remove the rule of %s and %s.',
        first.seq, second.seq, becomes, message, state, first.name, second.name);
END
$$;
COMMENT ON FUNCTION inturn._call_merge IS 'Internal: calls a merge function for two commands.';
