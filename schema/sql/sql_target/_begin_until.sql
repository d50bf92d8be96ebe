-- Returns until when a batch, or a turn, of a SQL target begins further commands: for a second, or for half of the time
-- that the session's statement_timeout leaves to the statement, or its transaction_timeout to the transaction.
-- Internal to the appliers. Takes no locks.
--
-- These timers are for all commands that share the statement, and the one that they meet has failed. So each has at
-- least half of the time.
CREATE FUNCTION inturn._begin_until() RETURNS timestamptz
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT t.now + least('1 s', (
    SELECT min(greatest(l.began_at + l.timeout - t.now, '0')) / 2
    FROM (VALUES (statement_timestamp(), current_setting('statement_timeout')::interval),
                 (transaction_timestamp(), current_setting('transaction_timeout', true)::interval))
         l (began_at, timeout)
    WHERE l.timeout > '0'))
FROM (SELECT clock_timestamp() OFFSET 0) t (now)
$$;
COMMENT ON FUNCTION inturn._begin_until IS
    'Internal to the appliers: until when a batch, or a turn, of a SQL target begins further commands.';
