-- Counts the keys of a topic by state, and what is pending, by looking at no more than max_rows rows. Internal to
-- topic_metrics.
--
-- exact false: it has more keys than that. Then states are scaled up to what the planner expects, from the last
-- ANALYZE, and pending is what the keys that were looked at have, and one command for each further key.
-- oldest_at: when the oldest pending command was appended, among the keys looked at: those that have been ready the
-- longest, and those that have been held, waiting and paused the longest. Where callers give the numbers, one that is
-- missing counts as pending. A key that only a hint tells of counts as ready since that was left: see _hinted_keys.
-- Takes no locks.
CREATE FUNCTION inturn._count_topic(
    topic text, most integer,
    OUT held bigint, OUT retrying bigint, OUT paused bigint, OUT leased bigint, OUT waiting bigint, OUT ready bigint,
    OUT pending bigint, OUT oldest_at timestamptz, OUT ready_since timestamptz, OUT arrived bigint, OUT exact boolean
)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off
AS $$
DECLARE
    found_marks bigint; found_tickets bigint; looked bigint; keys bigint; marked bigint; queued bigint; hinted record;
    earliest timestamptz; -- when the first ticket is ready
BEGIN
    SELECT count(*), count(*) FILTER (WHERE m.state = 'held'), count(*) FILTER (WHERE m.state = 'retrying'),
           count(*) FILTER (WHERE m.state = 'paused'), count(*) FILTER (WHERE m.state = 'leased'),
           count(*) FILTER (WHERE m.state = 'waiting'), count(*) FILTER (WHERE m.state = 'ready')
    INTO found_marks, held, retrying, paused, leased, waiting, ready
    FROM (SELECT inturn.key_state(ROW(m.topic, m.key, 0, statement_timestamp(), 0, m.attempts, 0, m.last_error,
                                      m.failed_at,
                                      m.held_at, m.paused_at, m.paused_until, m.waiting_at, m.claimed_by, m.claimed_at,
                                      m.lease_until, m.lost)::inturn.key_cursor) AS state
          FROM inturn.key_mark m WHERE m.topic = _count_topic.topic LIMIT most + 1) m;
    SELECT count(*), count(*) FILTER (WHERE NOT c.marked), min(c.ready_at),
           min(c.ready_at) FILTER (WHERE c.ready_at <= statement_timestamp())
    INTO found_tickets, queued, earliest, ready_since
    FROM (SELECT c.marked, c.ready_at FROM inturn.ticket c
          WHERE c.topic COLLATE "POSIX" = _count_topic.topic AND c.ready_at < 'infinity'
          ORDER BY c.ready_at LIMIT most + 1) c;
    exact := found_marks <= most AND found_tickets <= most;
    ready := ready + queued;
    keys := held + retrying + paused + leased + waiting + ready;
    IF NOT exact THEN
        SELECT greatest(keys, e.tickets), greatest(found_marks, e.marks) INTO keys, marked
        FROM inturn._estimate_keys(topic) e;
        SELECT held * s, retrying * s, paused * s, leased * s, waiting * s INTO held, retrying, paused, leased, waiting
        FROM (SELECT marked::float8 / greatest(found_marks, 1)) scale (s);
        ready := greatest(ready, keys - held - retrying - paused - leased - waiting);
        keys := held + retrying + paused + leased + waiting + ready;
    END IF;
    SELECT count(*), coalesce(sum(p.last - c.applied_seq) FILTER (WHERE p.first_at IS NOT NULL), 0), min(p.first_at)
    INTO looked, pending, oldest_at
    FROM inturn._oldest_tickets(topic, greatest(most / 10, 10), earliest) c CROSS JOIN LATERAL (
        SELECT (SELECT l.created_at FROM inturn.command_log l
                WHERE l.topic = c.topic AND l.key = c.key AND l.seq > c.applied_seq ORDER BY l.seq LIMIT 1) AS first_at,
               (SELECT l.seq FROM inturn.command_log l
                WHERE l.topic = c.topic AND l.key = c.key ORDER BY l.seq DESC LIMIT 1) AS last) p;
    exact := exact AND keys <= looked;
    SELECT count(*) AS keys, coalesce(sum(h.pending), 0) AS pending, min(h.since) AS since,
           min(h.first_at) AS first_at INTO hinted
    FROM inturn._hinted_keys(topic, most + 1) h;
    ready := ready + hinted.keys;
    ready_since := least(ready_since, hinted.since);
    oldest_at := least(oldest_at, hinted.first_at);
    exact := exact AND (SELECT count(*)
                        FROM (SELECT FROM inturn.wake_hint h
                              WHERE h.topic = _count_topic.topic LIMIT most + 1) h) <= most;
    arrived := 0;
    IF inturn._arrival_topics(ARRAY[topic]) <> '{}' THEN
        SELECT count(*), least(oldest_at, min(a.created_at)) INTO arrived, oldest_at
        FROM inturn._oldest_arrivals(topic, most + 1) a;
    END IF;
    pending := pending + greatest(keys - looked, 0) + hinted.pending + arrived;
END
$$;
COMMENT ON FUNCTION inturn._count_topic IS 'Internal to topic_metrics: a topic''s keys by state, and what is pending.';
