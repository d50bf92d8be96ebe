CREATE FUNCTION inturn.key_state(c inturn.key_cursor) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- Returns the state of a key now: held (its next command failed for good; or was not appended in time: then waiting_at
-- is set too), paused, leased (an applier works on it outside the database), waiting (for a number that nobody has
-- appended), retrying (its next command failed and is tried again), ready or idle.
-- Where only a hint tells of what was appended, it is what the next applier will find: see _seen_state.
-- Takes no locks. It does not say what is pending on a paused or held key; nor what has arrived on an idle one and has
-- no number yet: who lists and shows keys calls that one arrived.
-- Runs as its owner, since it looks into the log; of topics that are granted to other operators only it tells no more
-- than c does.
DECLARE
    stored constant text := inturn._stored_state(c);
    seen constant text := inturn._seen_state(c);
BEGIN
    RETURN CASE WHEN seen <> stored AND c.topic = ANY (inturn._hidden_topics()) THEN stored ELSE seen END;
END
$$;
COMMENT ON FUNCTION inturn.key_state IS
    'The state of a key now: held, paused, leased, waiting, retrying, ready or idle.';
