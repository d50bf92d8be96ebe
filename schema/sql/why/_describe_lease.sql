-- Returns which applier has a key by lease, and where it runs, if it said so; NULL for a key without a lease.
-- Internal. Takes no locks.
CREATE FUNCTION inturn._describe_lease(c inturn.key_cursor) RETURNS text
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT c.claimed_by || coalesce((SELECT format(' (host %s, pid %s)', p.host, p.pid) FROM inturn.applier p
                                 WHERE p.applier = c.claimed_by AND p.pid IS NOT NULL), '')
$$;
COMMENT ON FUNCTION inturn._describe_lease IS 'Internal: who has a key by lease.';
