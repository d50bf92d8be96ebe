-- Returns when a lease that begins, or is renewed, now runs out. Internal to claim, advance and renew. Takes no locks.
--
-- lease: its length; NULL for the topic's own. Raises 22023 when it is not 10 ms to a day, as a topic's is.
CREATE FUNCTION inturn._lease_end(settings inturn.topic, lease interval) RETURNS timestamptz
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF lease NOT BETWEEN '10 ms' AND '1 day' THEN
        RAISE EXCEPTION USING ERRCODE = '22023',
            MESSAGE = format('lease is %s; 10 ms to 1 day are allowed', lease),
            HINT = format('Leave it out for that of topic %L, %s. To end a lease: release.', settings.name,
                          settings.lease);
    END IF;
    RETURN clock_timestamp() + coalesce(lease, settings.lease);
END
$$;
COMMENT ON FUNCTION inturn._lease_end IS 'Internal: when a lease that begins or is renewed now runs out.';
