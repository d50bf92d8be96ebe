-- Prunes one batch where it is due, and returns whether one was: an applier does it when it has nothing else to do.
-- Internal.
--
-- It removes only what the topics' own retain allows. A pass over a topic's keys begins a twentieth of its retain after
-- the one before began, an hour at most and a second at least, and goes on where whoever was before came to.
-- Commit at once afterwards. Locks, without waiting, an advisory lock, so that one applier at a time prunes, and that
-- of the topic (see _prune_lock): one that somebody prunes, and has not committed, is left out; what prune_batch locks.
-- Raises IT031 outside READ COMMITTED.
CREATE FUNCTION inturn._prune_idle() RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    due record;
BEGIN
    FOR due IN SELECT t.name, coalesce(p.next_key, '') AS from_key
    FROM inturn.topic t LEFT JOIN LATERAL (
        SELECT p.next_key, p.began_at FROM inturn.prune_pass p WHERE p.topic = t.name
        ORDER BY p.pass DESC LIMIT 1) p ON true
    WHERE t.retain IS NOT NULL AND (p.began_at IS NULL OR p.next_key IS NOT NULL
        OR clock_timestamp() - p.began_at NOT BETWEEN '0' AND greatest('1 second', least(t.retain / 20, '1 hour')))
    ORDER BY p.began_at NULLS FIRST LOOP
        EXIT WHEN NOT pg_try_advisory_xact_lock(hashtextextended('inturn.prunes', 0));
        IF pg_try_advisory_xact_lock(inturn._prune_lock(due.name)) THEN
            PERFORM inturn.prune_batch(due.name, due.from_key);
            RETURN true;
        END IF;
    END LOOP;
    RETURN false;
END
$$;
COMMENT ON FUNCTION inturn._prune_idle IS 'Internal to the appliers: prunes one batch where it is due.';
