-- Returns the advisory lock of those who prune a topic: prune_batch shares it, an applier that has nothing else to do
-- tries to have it alone, so that it never waits for another prune. Internal. Takes no locks.
CREATE FUNCTION inturn._prune_lock(topic text) RETURNS bigint
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT hashtextextended('inturn.prunes ' || topic, 0)
$$;
COMMENT ON FUNCTION inturn._prune_lock IS 'Internal: the advisory lock of those who prune a topic.';
