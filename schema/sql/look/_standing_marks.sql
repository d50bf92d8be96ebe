-- Returns the marks of the keys of a topic that are held, waiting, paused, leased or retrying, so many of each, those
-- that have been so the longest, and no key twice. Internal to topic_metrics. Takes no locks.
--
-- Of the leased and the retrying keys only those that are not ready yet: the others have a ticket that is ready. So
-- what ended leases and attempts left in the indexes before now is not walked over.
CREATE FUNCTION inturn._standing_marks(topic text, most integer, now timestamptz)
RETURNS SETOF inturn.key_mark
LANGUAGE plpgsql STABLE -- before 18 a function in SQL would be planned anew for each topic
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off
AS $$
BEGIN
    RETURN QUERY
    (SELECT m.* FROM inturn.key_mark m
     WHERE m.topic = _standing_marks.topic AND m.held_at IS NOT NULL ORDER BY m.held_at LIMIT most)
    UNION
    (SELECT m.* FROM inturn.key_mark m
     WHERE m.topic = _standing_marks.topic AND m.waiting_at IS NOT NULL ORDER BY m.waiting_at LIMIT most)
    UNION
    (SELECT m.* FROM inturn.key_mark m
     WHERE m.topic = _standing_marks.topic AND m.paused_at IS NOT NULL ORDER BY m.paused_at LIMIT most)
    UNION
    (SELECT m.* FROM inturn.key_mark m
     WHERE m.topic = _standing_marks.topic AND m.lease_until > now ORDER BY m.lease_until LIMIT most)
    UNION
    (SELECT m.* FROM inturn.key_mark m
     WHERE m.topic = _standing_marks.topic AND m.attempts > 0 AND m.held_at IS NULL
       AND m.ready_at > now ORDER BY m.ready_at LIMIT most);
END
$$;
COMMENT ON FUNCTION inturn._standing_marks IS
    'Internal to topic_metrics: the marks of keys that are held, waiting, paused, leased or retrying.';
