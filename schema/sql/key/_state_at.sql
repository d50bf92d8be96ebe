-- Returns the state that a key has at a time: for whoever looks at many keys as of one. Internal. Takes no locks.
--
-- As it is stored: what it returns, and what hints make of it, key_state says. Qualified, not pinned: it is inlined,
-- where the time is no more than a value.
CREATE FUNCTION inturn._state_at(c inturn.key_cursor, at timestamptz) RETURNS text
LANGUAGE sql STABLE
AS $$
SELECT CASE
    WHEN c.held_at IS NOT NULL THEN 'held'
    WHEN c.paused_at IS NOT NULL AND at OPERATOR(pg_catalog.<) coalesce(c.paused_until, 'infinity') THEN 'paused'
    WHEN at OPERATOR(pg_catalog.<) c.lease_until THEN 'leased'
    WHEN c.waiting_at IS NOT NULL THEN 'waiting'
    WHEN c.ready_at IS NULL THEN 'idle'
    WHEN c.attempts OPERATOR(pg_catalog.>) 0 THEN 'retrying'
    ELSE 'ready' END
$$;
COMMENT ON FUNCTION inturn._state_at IS 'Internal: the state of a key at a time.';
