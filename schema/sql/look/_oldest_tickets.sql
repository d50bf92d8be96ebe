-- Returns tickets of a topic: those of the keys that have been ready, held, waiting and paused the longest, so many of
-- each kind, and no key twice. Internal to topic_metrics. Takes no locks.
--
-- since: when the first of them is ready, as whoever asks has found: what turns have left before that is not walked
-- over again. NULL: none is.
CREATE FUNCTION inturn._oldest_tickets(topic text, most integer, since timestamptz) RETURNS SETOF inturn.ticket
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
WITH marked AS (
    (SELECT m.topic, m.key, m.epoch FROM inturn.key_mark m
     WHERE m.topic = _oldest_tickets.topic AND m.held_at IS NOT NULL ORDER BY m.held_at LIMIT most)
    UNION
    (SELECT m.topic, m.key, m.epoch FROM inturn.key_mark m
     WHERE m.topic = _oldest_tickets.topic AND m.waiting_at IS NOT NULL ORDER BY m.waiting_at LIMIT most)
    UNION
    (SELECT m.topic, m.key, m.epoch FROM inturn.key_mark m
     WHERE m.topic = _oldest_tickets.topic AND m.paused_at IS NOT NULL ORDER BY m.paused_at LIMIT most)
)
(SELECT c.* FROM inturn.ticket c
 WHERE c.topic COLLATE "POSIX" = _oldest_tickets.topic AND c.ready_at >= since AND c.ready_at < 'infinity'
 ORDER BY c.ready_at LIMIT most)
UNION
SELECT c.* FROM marked m CROSS JOIN LATERAL (
    SELECT c.* FROM inturn.ticket c WHERE c.topic = m.topic AND c.key = m.key AND c.epoch = m.epoch LIMIT 1) c
$$;
COMMENT ON FUNCTION inturn._oldest_tickets IS
    'Internal to topic_metrics: tickets of the keys that have stood the longest.';
