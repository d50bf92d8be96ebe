-- Returns what a numbering pass takes: of what the last one did not see, or of a part of its plan, the lowest ids.
-- Internal to _number_topic. Takes no locks.
--
-- max_commands: at most so many, and as many octets as a claim takes, as they are stored. is_full: there are more.
-- last_id: the highest that is taken. snapshot: by which it looked.
CREATE FUNCTION inturn._next_arrivals(
    last inturn.arrival_pass, max_commands integer,
    OUT tids tid[], OUT keys text[], OUT last_id bigint, OUT is_full boolean, OUT snapshot pg_snapshot
)
LANGUAGE plpgsql STABLE -- so that the snapshot that it returns is the one that it sees by
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
BEGIN
    snapshot := pg_current_snapshot();
    SELECT array_agg(a.tid) FILTER (WHERE a.fits), array_agg(DISTINCT a.key) FILTER (WHERE a.fits),
           max(a.id) FILTER (WHERE a.fits), coalesce(bool_or(NOT a.fits), false)
    INTO tids, keys, last_id, is_full FROM (
        SELECT a.tid, a.key, a.id, row_number() OVER w <= max_commands
               AND sum(a.octets) OVER w - a.octets < inturn._max_claim_octets() AS fits
        FROM (SELECT a.* FROM (
                  SELECT a.tid, a.key, a.id, a.octets FROM inturn._appeared(last.topic, last.seen, last.own) a
                  WHERE last.planned IS NULL
                  UNION ALL
                  SELECT a.tid, a.key, a.id, a.octets FROM inturn._planned_arrivals(
                      last.topic, last.from_id, last.to_ids[1],
                      last.from_xids[1]::text::xid8, last.to_xids[1]::text::xid8) a
                  WHERE last.planned IS NOT NULL) a
              ORDER BY a.id LIMIT max_commands + 1::bigint) a
        WINDOW w AS (ORDER BY a.id)) a;
END
$$;
COMMENT ON FUNCTION inturn._next_arrivals IS 'Internal to the appliers: what a numbering pass takes.';
