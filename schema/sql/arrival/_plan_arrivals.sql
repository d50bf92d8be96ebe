-- Plans how passes number a topic's backlog part by part: each then reads its part, and not all that there is to find
-- the lowest ids. Returns what the next pass goes by. Internal to _number_topic. Takes no locks.
--
-- The plan is for all that this look sees, in the order of the ids. Whatever commits later may have any ids. Where its
-- part is still to come, it comes there: what it has to follow had committed when it got its id, so this look sees
-- that, with a lower id. Otherwise it comes after all of the plan: what has to follow it began after its commit, so it
-- has a higher id than all of that.
-- A part has some max_commands, and as many octets as a pass takes, unless few thousand ids have more.
CREATE FUNCTION inturn._plan_arrivals(last inturn.arrival_pass, max_commands integer) RETURNS inturn.arrival_pass
LANGUAGE plpgsql STABLE -- so that all of it is by one snapshot
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
DECLARE
    seen constant pg_snapshot := pg_current_snapshot();
    width constant bigint := 5000;
    plan record;
BEGIN
    SELECT array_agg(p.to_id ORDER BY p.part) AS to_ids, array_agg(p.from_xid ORDER BY p.part) AS from_xids,
           array_agg(p.to_xid ORDER BY p.part) AS to_xids, min(p.from_id) - 1 AS from_id
    INTO plan FROM (
        SELECT b.part, min(b.from_id) AS from_id, max(b.to_id) AS to_id, min(b.from_xid) AS from_xid,
               max(b.to_xid) AS to_xid
        FROM (SELECT b.*, floor(greatest(
                  (sum(b.commands) OVER w - b.commands) / greatest(max_commands - width, width),
                  (sum(b.octets) OVER w - b.octets) / inturn._max_claim_octets())) AS part
              FROM (SELECT count(*) AS commands, sum(a.octets) AS octets, min(a.id) AS from_id, max(a.id) AS to_id,
                           min(a.xid::text::bigint) AS from_xid, max(a.xid::text::bigint) AS to_xid
                    FROM inturn._appeared(last.topic, last.seen, last.own) a GROUP BY a.id / width) b
              WINDOW w AS (ORDER BY b.from_id)) b
        GROUP BY b.part) p;
    IF plan.from_id IS NOT NULL THEN
        last.planned := seen; last.planned_by := pg_current_xact_id();
        last.from_id := plan.from_id; last.to_ids := plan.to_ids;
        last.from_xids := plan.from_xids; last.to_xids := plan.to_xids;
    END IF;
    RETURN last;
END
$$;
COMMENT ON FUNCTION inturn._plan_arrivals IS 'Internal to the appliers: plans how a backlog is numbered part by part.';
