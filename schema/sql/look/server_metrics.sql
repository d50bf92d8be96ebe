CREATE FUNCTION inturn.server_metrics() RETURNS TABLE (metric text, labels jsonb, value double precision)
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET jit = off
AS $$
-- Returns what a scrape of metrics says of the schema as a whole: its tables' rows and sizes, the oldest snapshots that
-- keep dead rows from being removed, and the handlers that appliers abandoned. Costs the same however many keys there
-- are.
-- Takes no locks, but ACCESS SHARE on the tables.
--
-- Rows are those that PostgreSQL's statistics count, inserts of transactions that were rolled back included. A table's
-- partitions count together.
-- Holders of snapshots: session, whatever it is of, also a subscription's or a background worker's; prepared, a
-- prepared transaction; slot, a replication slot of the server that can be used still; standby, one that reports its
-- snapshots. Their age is in transactions, of the first two in seconds too. Of another database's sessions and prepared
-- transactions those count that have written: no snapshot here is newer than the oldest of them. A VACUUM at work does
-- not, as nothing is kept for it.
-- Runs as its owner, so that other users' sessions are seen: the owner needs pg_monitor, or is a superuser.
WITH tables AS MATERIALIZED (
    SELECT c.relname, jsonb_build_object('table', c.relname) AS labels, sum(s.n_live_tup) AS n_live_tup,
           sum(s.n_dead_tup) AS n_dead_tup, sum(s.n_tup_ins) AS n_tup_ins,
           sum(pg_total_relation_size(coalesce(p.relid, c.oid)))::double precision AS size
    FROM pg_class c LEFT JOIN LATERAL pg_partition_tree(c.oid) p ON p.isleaf
    LEFT JOIN pg_stat_all_tables s ON s.relid = coalesce(p.relid, c.oid)
    WHERE c.relnamespace = (SELECT o.relnamespace FROM pg_class o WHERE o.oid = 'inturn.topic'::regclass)
      AND c.relkind IN ('r', 'p') AND NOT c.relispartition
    GROUP BY c.relname
),
holder AS MATERIALIZED (
    SELECT 'session' AS holder, greatest(age(a.backend_xid), CASE WHEN a.datname = current_database()
                                                                  THEN age(a.backend_xmin) END) AS xids,
           extract(epoch FROM clock_timestamp() - a.xact_start)::double precision AS seconds
    FROM pg_stat_activity a
    WHERE a.datname IS NOT NULL AND a.pid <> pg_backend_pid()
      AND (a.backend_xid IS NOT NULL OR a.datname = current_database() AND a.backend_xmin IS NOT NULL)
      AND NOT EXISTS (SELECT FROM pg_stat_progress_vacuum v WHERE v.pid = a.pid)
    UNION ALL
    SELECT 'prepared', age(x.transaction), extract(epoch FROM clock_timestamp() - x.prepared)::double precision
    FROM pg_prepared_xacts x
    UNION ALL
    SELECT 'slot', greatest(age(r.xmin), age(r.catalog_xmin)), NULL FROM pg_replication_slots r
    WHERE r.wal_status IS DISTINCT FROM 'lost'
    UNION ALL
    SELECT 'standby', age(a.backend_xmin), NULL FROM pg_stat_activity a
    WHERE a.backend_type = 'walsender' AND a.datname IS NULL
)
SELECT 'inturn_table_size_bytes', t.labels, t.size FROM tables t
UNION ALL SELECT 'inturn_table_live_rows', t.labels, t.n_live_tup FROM tables t
UNION ALL SELECT 'inturn_table_dead_rows', t.labels, t.n_dead_tup FROM tables t
UNION ALL SELECT 'inturn_appended_commands_total', '{}', t.n_tup_ins FROM tables t WHERE t.relname = 'command_log'
UNION ALL SELECT 'inturn_recorded_turns_total', '{}', t.n_tup_ins FROM tables t WHERE t.relname = 'turn'
UNION ALL
SELECT 'inturn_oldest_snapshot_age_transactions', jsonb_build_object('holder', k.holder), coalesce(max(h.xids), 0)
FROM unnest(ARRAY['session', 'prepared', 'slot', 'standby']) k (holder) LEFT JOIN holder h USING (holder)
GROUP BY k.holder
UNION ALL
SELECT 'inturn_oldest_snapshot_age_seconds', jsonb_build_object('holder', k.holder), coalesce(max(h.seconds), 0)
FROM unnest(ARRAY['session', 'prepared']) k (holder) LEFT JOIN holder h USING (holder) GROUP BY k.holder
UNION ALL
SELECT 'inturn_abandoned_handlers', '{}', coalesce(sum(p.abandoned), 0) FROM (
    SELECT max(p.abandoned) AS abandoned FROM inturn.applier p
    LEFT JOIN pg_stat_activity a ON a.pid = p.backend_pid AND a.datname = current_database()
                                   AND coalesce(a.backend_start, p.backend_start) = p.backend_start
    WHERE inturn._is_alive(p, a.pid, a.state, a.query_start) GROUP BY inturn._process_of(p.applier)) p
UNION ALL
SELECT 'inturn_schema_info', jsonb_build_object('revision', v.version_num), 1 FROM inturn.schema_version v
ORDER BY 1, 2
$$;
COMMENT ON FUNCTION inturn.server_metrics IS 'What a scrape of metrics says of the schema as a whole.';
