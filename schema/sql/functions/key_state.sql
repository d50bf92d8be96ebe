-- Returns the state of a key: held, paused, retrying (its next command failed and is tried again), ready or idle.
-- Takes no locks. What is pending on a paused or held key it does not say.
CREATE FUNCTION inturn.key_state(c inturn.key_cursor) RETURNS text
LANGUAGE sql STABLE
AS $$
SELECT CASE
    WHEN c.held_at IS NOT NULL THEN 'held'
    WHEN c.paused_at IS NOT NULL AND statement_timestamp() < coalesce(c.paused_until, 'infinity') THEN 'paused'
    WHEN c.ready_at IS NULL THEN 'idle'
    WHEN c.attempts > 0 THEN 'retrying'
    ELSE 'ready' END
$$;
COMMENT ON FUNCTION inturn.key_state IS 'The state of a key: held, paused, retrying, ready or idle.';
