-- Returns how large the table of those who wait may grow: some 500,000 waits that began in the last seconds. Internal
-- to announce_wait. Takes no locks.
CREATE FUNCTION inturn._max_waiter_octets() RETURNS bigint
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT 67108864
$$;
COMMENT ON FUNCTION inturn._max_waiter_octets IS
    'Internal to announce_wait: how large the table of those who wait may grow.';
