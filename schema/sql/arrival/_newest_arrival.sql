-- Returns the newest transaction, from one of them back, that has appended to a key what has no number yet; NULL: none
-- has.
-- Internal to _find_goal. Takes no locks.
--
-- up_to: where it begins; NULL: at the newest of all. From there it reads what arrived on the topic, back to the first
-- that is the key's: a wait that begins each look where the last one ended reads the topic's backlog once at most.
CREATE FUNCTION inturn._newest_arrival(topic text, key text, up_to xid8) RETURNS xid8
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off
AS $$
DECLARE
    last constant inturn.arrival_pass := inturn._last_arrival_pass(topic);
    seen_to constant xid8 := coalesce(pg_snapshot_xmax(last.seen), '0');
    behind xid8;
    newest xid8;
BEGIN
    up_to := coalesce(up_to, '18446744073709551615');
    -- In the order of their own index: see _has_arrivals.
    SELECT i.xid INTO behind FROM (
        SELECT i.xid FROM inturn.intake i
        WHERE i.topic = _newest_arrival.topic AND i.key = _newest_arrival.key AND i.left_because IS NOT NULL
        ORDER BY i.id OFFSET 0) i
    WHERE i.xid <= up_to ORDER BY i.xid DESC LIMIT 1;
    -- The two parts of _appeared, from their ends.
    SELECT i.xid INTO newest FROM inturn.intake i
    WHERE i.topic = _newest_arrival.topic AND i.xid >= seen_to AND i.xid <= up_to
      AND i.key = _newest_arrival.key AND i.left_because IS NULL
    ORDER BY i.xid DESC, i.id DESC LIMIT 1;
    IF newest IS NULL THEN
        SELECT r.xid INTO newest
        FROM (SELECT x FROM pg_snapshot_xip(last.seen) x UNION SELECT unnest(last.own)) r (xid)
        CROSS JOIN LATERAL (
            SELECT FROM inturn.intake i
            WHERE i.topic = _newest_arrival.topic AND i.xid = r.xid AND i.key = _newest_arrival.key
              AND i.left_because IS NULL
            ORDER BY i.id DESC LIMIT 1) i
        WHERE r.xid < seen_to AND r.xid <= up_to AND pg_visible_in_snapshot(r.xid, pg_current_snapshot())
        ORDER BY r.xid DESC LIMIT 1;
    END IF;
    RETURN greatest(behind, newest);
END
$$;
COMMENT ON FUNCTION inturn._newest_arrival IS
    'Internal to wait_state: the newest transaction that appended to a key what has no number yet.';
