-- Checks the deferred constraints on what was done so far in this transaction, and leaves them deferred. Internal to
-- the appliers, after each command of a turn that is taken alone.
--
-- An error at COMMIT would be no command's failure. The check is rolled back: so they are deferred again for the next
-- command, and are checked once more before the commit.
-- A command that has made the transaction read-only is found too: the next one would fail in its place, or finish.
-- Locks what the constraints lock, until it returns. Raises what they raise, and 25006.
CREATE FUNCTION inturn._check_effects() RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    checked boolean := false;
BEGIN
    IF pg_catalog.current_setting('transaction_read_only') OPERATOR(pg_catalog.=) 'on' THEN
        RAISE read_only_sql_transaction USING MESSAGE = 'the command made the transaction read-only',
            HINT = 'What becomes of it is recorded in the same transaction: remove its SET TRANSACTION READ ONLY.';
    END IF;
    SET CONSTRAINTS ALL IMMEDIATE;
    checked := true;
    RAISE EXCEPTION USING ERRCODE = 'IT999';
EXCEPTION WHEN SQLSTATE 'IT999' THEN
    IF NOT checked THEN
        RAISE; -- it is a trigger's, not ours
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._check_effects IS
    'Internal to the appliers: checks the deferred constraints, and leaves them deferred.';
