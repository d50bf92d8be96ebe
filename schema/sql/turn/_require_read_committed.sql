-- Refuses a turn in a transaction whose statements do not each take a new snapshot. Internal to finish and fail.
--
-- On one snapshot, finish would not see a command that was appended during the turn: its key would stay idle for good.
-- Raises IT031. Takes no locks.
CREATE FUNCTION inturn._require_read_committed() RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION USING ERRCODE = 'IT031',
            MESSAGE = format('a turn was taken at isolation level %s', current_setting('transaction_isolation')),
            HINT = 'Appliers work at READ COMMITTED: SET TRANSACTION ISOLATION LEVEL READ COMMITTED.';
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._require_read_committed IS 'Internal to finish and fail: refuses other isolation levels.';
