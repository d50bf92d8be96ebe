-- Returns the state of a key now: for whatever decides by it. Internal. Takes no locks.
--
-- key_state has that of when the client's statement began. A pause or a lease may have ended since then, while an
-- operator waited for a lock, or CALL apply went on. To go by that would put the key off until a time that is past,
-- where no pass looks for a minute.
CREATE FUNCTION inturn._state_now(c inturn.key_cursor) RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF c.paused_until <= clock_timestamp() THEN
        c.paused_at := NULL;
    END IF;
    IF c.lease_until <= clock_timestamp() THEN
        c.lease_until := NULL;
    END IF;
    RETURN inturn.key_state(c);
END
$$;
COMMENT ON FUNCTION inturn._state_now IS 'Internal: the state of a key now.';
