-- Returns the process of an applier: HOST:PID-START for HOST:PID-START:NUMBER, as the workers of a process are called,
-- and HOST:PID for HOST:PID:NUMBER; otherwise the applier itself.
-- Internal; inturn status groups appliers by it. Takes no locks. Qualified, not pinned: it is inlined.
CREATE FUNCTION inturn._process_of(applier text) RETURNS text
LANGUAGE sql IMMUTABLE
AS $$
SELECT coalesce(pg_catalog.substring(applier, '^(.+:[0-9]+(?:-[0-9a-f]+)?):[0-9]+$'), applier)
$$;
COMMENT ON FUNCTION inturn._process_of IS 'Internal: the process of an applier.';
