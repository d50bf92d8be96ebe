CREATE FUNCTION inturn.key_state(c inturn.key_cursor) RETURNS text
LANGUAGE sql STABLE
AS $$
-- Returns the state of a key: held (its next command failed for good; or was not appended in time: then waiting_at is
-- set too), paused, leased (an applier works on it outside the database), waiting (for a number that nobody has
-- appended), retrying (its next command failed and is tried again), ready or idle.
-- It is that of when the client's statement began, for all keys that the statement looks at. In a procedure that goes
-- on for long, ask progress.
-- Takes no locks. It does not say what is pending on a paused or held key; nor what has arrived on an idle one and has
-- no number yet: who lists and shows keys calls that one arrived. Qualified, not pinned: it is inlined.
SELECT CASE
    WHEN c.held_at IS NOT NULL THEN 'held'
    WHEN c.paused_at IS NOT NULL
         AND pg_catalog.statement_timestamp() OPERATOR(pg_catalog.<) coalesce(c.paused_until, 'infinity') THEN 'paused'
    WHEN pg_catalog.statement_timestamp() OPERATOR(pg_catalog.<) c.lease_until THEN 'leased'
    WHEN c.waiting_at IS NOT NULL THEN 'waiting'
    WHEN c.ready_at IS NULL THEN 'idle'
    WHEN c.attempts OPERATOR(pg_catalog.>) 0 THEN 'retrying'
    ELSE 'ready' END
$$;
COMMENT ON FUNCTION inturn.key_state IS 'The state of a key: held, paused, leased, waiting, retrying, ready or idle.';
