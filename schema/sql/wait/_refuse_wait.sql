-- Refuses to wait in a transaction that cannot see what it waits for. Internal to wait. Takes no locks.
--
-- What the transaction itself has appended is not applied before its commit; at REPEATABLE READ and SERIALIZABLE it
-- sees nothing of what is applied after its beginning. Raises IT031.
CREATE FUNCTION inturn._refuse_wait() RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION USING ERRCODE = 'IT031',
            MESSAGE = format('wait was called at isolation level %s, which sees nothing that is applied from now on',
                             current_setting('transaction_isolation')),
            HINT = 'Commit first. Then wait at READ COMMITTED.';
    ELSIF pg_current_xact_id_if_assigned() IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'IT031',
            MESSAGE = 'wait was called in a transaction that has written: what it appended is applied only after its '
                      'commit',
            HINT = 'Commit first. Then wait.';
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._refuse_wait IS 'Internal to wait: refuses a transaction that cannot see what it waits for.';
