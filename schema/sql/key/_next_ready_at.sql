-- Returns when a key is ready next, NULL when not before somebody acts: only this function decides it. Internal.
--
-- not_before: what the key itself asks for: now, the end of a _backoff or of a gap; NULL: it is held, or waits.
-- A pause that runs and a lease that runs put it off further. Takes no locks. Qualified, not pinned: it is inlined.
CREATE FUNCTION inturn._next_ready_at(c inturn.key_cursor, not_before timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE
AS $$
SELECT CASE
    WHEN c.held_at IS NOT NULL OR c.paused_at IS NOT NULL AND c.paused_until IS NULL THEN NULL
    WHEN not_before IS NULL AND c.paused_until IS NULL AND c.lease_until IS NULL THEN NULL
    ELSE greatest(not_before, c.paused_until, c.lease_until) END
$$;
COMMENT ON FUNCTION inturn._next_ready_at IS 'Internal: when a key is ready next.';
