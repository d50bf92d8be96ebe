-- Returns what has arrived in a topic and has no number: what was left behind, and what the last pass did not see. Internal to
-- _number_topic. Takes no locks.
--
-- seen: what that pass saw; NULL for none. own: its transaction, which may have appended more after the pass.
-- Inlined, so that its three parts are scans of an index each, by the statement's own snapshot.
CREATE FUNCTION inturn._appeared(topic text, seen pg_snapshot, own xid8)
RETURNS TABLE (tid tid, key text, id bigint, left_behind boolean)
LANGUAGE sql STABLE
AS $$
SELECT i.ctid, i.key, i.id, false FROM inturn.intake i
WHERE i.topic = _appeared.topic AND i.xid >= coalesce(pg_snapshot_xmax(seen), '0') AND NOT i.left_behind
UNION ALL
-- Those that still run are not looked at: one may have appended a million.
SELECT i.ctid, i.key, i.id, false FROM (SELECT x FROM pg_snapshot_xip(seen) x UNION SELECT own) r (xid)
JOIN inturn.intake i ON i.topic = _appeared.topic AND i.xid = r.xid AND NOT i.left_behind
WHERE r.xid < pg_snapshot_xmax(seen) AND pg_visible_in_snapshot(r.xid, pg_current_snapshot())
UNION ALL
SELECT i.ctid, i.key, i.id, true FROM inturn.intake i WHERE i.topic = _appeared.topic AND i.left_behind
$$;
COMMENT ON FUNCTION inturn._appeared IS 'Internal to the appliers: what has arrived in a topic and has no number.';
