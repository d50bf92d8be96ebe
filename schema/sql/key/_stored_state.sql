-- Returns the state that a key has now as it is stored: for whoever changes it. Internal. Takes no locks.
--
-- What it returns, key_state says, which goes by hints too.
-- Not as of when the client's statement began: a pause or a lease may have ended since then, while an operator waited
-- for a lock, or CALL apply went on. To go by that would put the key off until a time that is past, where no pass looks
-- for a minute.
CREATE FUNCTION inturn._stored_state(c inturn.key_cursor) RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    at constant timestamptz := clock_timestamp();
BEGIN
    RETURN inturn._state_at(c, at);
END
$$;
COMMENT ON FUNCTION inturn._stored_state IS 'Internal: the state of a key now, as it is stored.';
