-- Returns what has arrived in a topic since the last pass, and what that did not take. Internal to _number_topic. Takes
-- no locks.
--
-- seen: what that pass saw; NULL for none. own: transactions of passes since then, which may have appended more
-- afterwards.
-- octets: of a payload, as it is stored.
-- Inlined, so that its two parts are scans of an index each, by the statement's own snapshot. Qualified, not pinned.
CREATE FUNCTION inturn._appeared(topic text, seen pg_snapshot, own xid8[])
RETURNS TABLE (tid tid, key text, id bigint, octets integer, xid xid8)
LANGUAGE sql STABLE
AS $$
SELECT i.ctid, i.key, i.id, pg_catalog.pg_column_size(i.payload), i.xid FROM inturn.intake i
WHERE i.topic OPERATOR(pg_catalog.=) _appeared.topic
  AND i.xid OPERATOR(pg_catalog.>=) coalesce(pg_catalog.pg_snapshot_xmax(seen), '0') AND i.left_because IS NULL
UNION ALL
-- Those that still run are not looked at: one may have appended a million. OFFSET 0: a transaction at a time, or a
-- planner may read the whole topic.
SELECT i.tid, i.key, i.id, i.octets, r.xid
FROM (SELECT x FROM pg_catalog.pg_snapshot_xip(seen) x UNION SELECT pg_catalog.unnest(own)) r (xid)
CROSS JOIN LATERAL (
    SELECT i.ctid AS tid, i.key, i.id, pg_catalog.pg_column_size(i.payload) AS octets FROM inturn.intake i
    WHERE i.topic OPERATOR(pg_catalog.=) _appeared.topic AND i.xid OPERATOR(pg_catalog.=) r.xid
      AND i.left_because IS NULL OFFSET 0) i
WHERE r.xid OPERATOR(pg_catalog.<) pg_catalog.pg_snapshot_xmax(seen)
  AND pg_catalog.pg_visible_in_snapshot(r.xid, pg_catalog.pg_current_snapshot())
$$;
COMMENT ON FUNCTION inturn._appeared IS 'Internal to the appliers: what has arrived in a topic since the last pass.';
