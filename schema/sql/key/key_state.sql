CREATE FUNCTION inturn.key_state(c inturn.key_cursor) RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- Returns the state of a key now: held (its next command failed for good; or was not appended in time: then waiting_at
-- is set too), paused, leased (an applier works on it outside the database), waiting (for a number that nobody has
-- appended), retrying (its next command failed and is tried again), ready or idle.
-- Takes no locks. It does not say what is pending on a paused or held key; nor what has arrived on an idle one and has
-- no number yet: who lists and shows keys calls that one arrived.
-- Not as of when the client's statement began: a pause or a lease may have ended since then, while an operator waited
-- for a lock, or CALL apply went on. To go by that would put the key off until a time that is past, where no pass looks
-- for a minute.
DECLARE
    at constant timestamptz := clock_timestamp();
BEGIN
    RETURN inturn._state_at(c, at);
END
$$;
COMMENT ON FUNCTION inturn.key_state IS
    'The state of a key now: held, paused, leased, waiting, retrying, ready or idle.';
