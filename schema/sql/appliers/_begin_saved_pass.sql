-- Begins a pass over topics where the last one left off, and saves where this one leaves off: see _begin_pass. Internal
-- to the appliers.
--
-- last: the applier's own last pass, if it has one in memory. NULL: it goes on where the last pass of any applier over
-- the same topics left off; with afresh it looks at everything. A client that claims in a transaction that is open for
-- long, or rolls back, saves nothing that others see.
-- Locks rows of saved_pass that are no longer needed, skipping locked ones; what _begin_pass locks.
CREATE FUNCTION inturn._begin_saved_pass(
    topics text[], last inturn._pass DEFAULT NULL, afresh boolean DEFAULT false
) RETURNS inturn._pass
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    hash constant bigint := hashtextextended(topics::text, 0);
    resumes constant boolean := last.next_xid IS NULL AND NOT afresh;
    saved record;
    fresh inturn._pass;
BEGIN
    SELECT p.saved_at, (p.pass).* INTO saved
    FROM inturn.saved_pass p WHERE p.topics_hash = hash ORDER BY p.saved_at DESC LIMIT 1;
    IF resumes THEN
        last := ROW(saved.found, saved.hands, saved.due, saved.looked_at, saved.safe_at, saved.hint_at, saved.next_at,
                    saved.next_xid, saved.whole_at, saved.starts, saved.seen_to, saved.walk_at, saved.walked_from);
    END IF;
    fresh := inturn._begin_pass(topics, last);
    -- A later saved_at: the clock was set back. A pass that others go on from and that looked at everything is saved at
    -- once; otherwise all claims until then would look at everything.
    IF saved.saved_at IS NULL OR saved.saved_at NOT BETWEEN clock_timestamp() - interval '100 ms' AND clock_timestamp()
        OR resumes AND (fresh.walk_at > saved.walk_at OR fresh.whole_at > saved.whole_at) THEN
        -- Not further back, except once a minute: a held snapshot keeps all that were deleted before, ten a second.
        DELETE FROM inturn.saved_pass p WHERE p.ctid = ANY (ARRAY(
            SELECT o.ctid FROM inturn.saved_pass o
            WHERE o.topics_hash = hash AND o.saved_at >= CASE
                WHEN fresh.whole_at = last.whole_at THEN saved.saved_at - interval '1 second' ELSE '-infinity' END
            ORDER BY o.saved_at DESC LIMIT 10 FOR UPDATE SKIP LOCKED));
        INSERT INTO inturn.saved_pass (topics_hash, topics, pass) VALUES (hash, topics, fresh) ON CONFLICT DO NOTHING;
    END IF;
    RETURN fresh;
END
$$;
COMMENT ON FUNCTION inturn._begin_saved_pass IS
    'Internal to the appliers: begins a pass where the last one over these topics left off, and saves where it ends.';
