CREATE FUNCTION inturn.list_appliers()
RETURNS TABLE (
    applier text, topics text[], host text, pid integer, backend_pid integer, revision text,
    started_at timestamptz, seen_at timestamptz, alive boolean, doing text, since timestamptz,
    topic text, key text, seq bigint, waits_for text, leases bigint, down jsonb, abandoned integer
)
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
-- Before 18 a table that has to be read whole costs so much under these settings that it would be compiled for.
SET jit = off
AS $$
-- Lists the appliers of the last day: who serves what, whether it is alive, and what it does now. Takes no locks.
--
-- alive: its session is at work, or it is there and was seen within 15 seconds; an applier announces itself every 5
-- seconds while it is not at work. doing: applying (since its transaction began, or it claimed the first of its leases
-- that run), idle, or gone (since it was seen). An applier that never announced itself is known by its leases while
-- they run.
-- topic, key, seq: the first key of the transaction or of the leases at work, and its next command; NULL where that
-- cannot be told: of a transaction it is looked for among the keys of each topic that have been ready the longest.
-- waits_for: what its query waits for. leases: how many keys it has by lease now. down, abandoned: see
-- announce_applier.
-- Keys, and the errors in down, of topics that are granted to other operators only are left out.
-- Runs as its owner, so that an operator sees other users' sessions; the owner needs pg_monitor, or is a superuser.
WITH lease AS MATERIALIZED (
    SELECT c.claimed_by, count(*) AS leases, array_agg(DISTINCT t.name) AS topics, min(c.claimed_at) AS since,
           max(c.claimed_at) AS seen_at, (array_agg(c.cursor ORDER BY c.claimed_at))[1] AS first
    FROM inturn.topic t CROSS JOIN LATERAL (
        SELECT m.claimed_by, m.claimed_at, c AS cursor FROM inturn.key_mark m
        JOIN inturn.ticket c ON c.topic = m.topic AND c.key = m.key AND c.epoch = m.epoch
        WHERE m.topic = t.name AND m.lease_until > (SELECT clock_timestamp())) c
    GROUP BY c.claimed_by
),
hidden AS MATERIALIZED (SELECT inturn._hidden_topics() AS topics),
turn AS MATERIALIZED (SELECT t.* FROM inturn._find_turns() t)
SELECT p.applier, p.topics, p.host, p.pid, p.backend_pid, p.revision, p.started_at, p.seen_at, d.alive,
       CASE WHEN NOT d.alive THEN 'gone' WHEN turn.backend_pid IS NOT NULL OR h.leases > 0 THEN 'applying'
            ELSE 'idle' END,
       CASE WHEN NOT d.alive THEN p.seen_at WHEN turn.backend_pid IS NOT NULL THEN a.xact_start
            WHEN h.leases > 0 THEN h.since ELSE a.state_change END,
       now.topic, now.key, now.seq,
       CASE WHEN d.alive AND turn.backend_pid IS NOT NULL THEN inturn._session_waits_for(a.pid) END,
       coalesce(h.leases, 0), p.down - hidden.topics, p.abandoned
FROM inturn.applier p
LEFT JOIN pg_stat_activity a ON a.pid = p.backend_pid AND a.datname = current_database()
                               AND coalesce(a.backend_start, p.backend_start) = p.backend_start
CROSS JOIN LATERAL (SELECT inturn._is_alive(p, a.pid, a.state, a.query_start) AS alive) d
LEFT JOIN turn ON d.alive AND turn.backend_pid = a.pid
LEFT JOIN lease h ON h.claimed_by = p.applier
CROSS JOIN hidden
LEFT JOIN LATERAL (
    SELECT n.* FROM (VALUES (coalesce(turn.topic, (h.first).topic), coalesce(turn.key, (h.first).key),
                             coalesce(turn.applied_seq, (h.first).applied_seq) + 1)) n (topic, key, seq)
    WHERE n.topic <> ALL (hidden.topics)) now ON true
UNION ALL
SELECT h.claimed_by, h.topics, NULL, NULL, NULL, NULL, h.since, h.seen_at, true, 'applying', h.since,
       CASE WHEN seen THEN (h.first).topic END, CASE WHEN seen THEN (h.first).key END,
       CASE WHEN seen THEN (h.first).applied_seq + 1 END, NULL, h.leases, '{}', 0
FROM lease h CROSS JOIN hidden CROSS JOIN LATERAL (SELECT (h.first).topic <> ALL (hidden.topics)) s (seen)
WHERE NOT EXISTS (SELECT FROM inturn.applier p WHERE p.applier = h.claimed_by)
ORDER BY 9 DESC, 1
$$;
COMMENT ON FUNCTION inturn.list_appliers IS
    'Lists the appliers of the last day, whether each is alive, and what it does now.';
