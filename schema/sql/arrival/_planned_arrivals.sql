-- Returns what is left of a part of a topic's backlog. Internal to _number_topic. Takes no locks.
--
-- from_id, to_id: the part's ids, the first of them excluded; from_xid, to_xid: its transactions are among these. Of
-- what the plan did not see, whatever is between them comes too: see _plan_arrivals.
-- Inlined, so that it is a scan of an index, by the statement's own snapshot. Qualified, not pinned.
CREATE FUNCTION inturn._planned_arrivals(
    topic text, from_id bigint, to_id bigint, from_xid xid8, to_xid xid8
) RETURNS TABLE (tid tid, key text, id bigint, octets integer)
LANGUAGE sql STABLE
AS $$
SELECT i.ctid, i.key, i.id, pg_catalog.pg_column_size(i.payload) FROM inturn.intake i
WHERE i.topic OPERATOR(pg_catalog.=) _planned_arrivals.topic
  AND i.xid OPERATOR(pg_catalog.>=) from_xid AND i.xid OPERATOR(pg_catalog.<=) to_xid
  AND i.id OPERATOR(pg_catalog.>) from_id AND i.id OPERATOR(pg_catalog.<=) to_id
  AND i.left_because IS NULL
$$;
COMMENT ON FUNCTION inturn._planned_arrivals IS 'Internal to the appliers: what is left of a part of a backlog.';
