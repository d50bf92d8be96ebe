-- Returns the locker (xmax) of what keeps a key from others: of its ticket; of an idle key, of its row in key_sequence.
-- Internal. Takes no locks.
CREATE FUNCTION inturn._find_locker(topic text, key text, OUT locker xid, OUT relation regclass)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
SELECT coalesce(t.xmax, s.xmax), CASE WHEN t.xmax IS NULL THEN 'inturn.key_sequence' ELSE 'inturn.ticket' END::regclass
FROM inturn.key_cursor c
JOIN inturn.key_sequence s ON s.topic = c.topic AND s.key = c.key
LEFT JOIN inturn.ticket t ON t.topic = c.topic AND t.key = c.key AND t.epoch = c.epoch
WHERE c.topic = _find_locker.topic AND c.key = _find_locker.key
$$;
COMMENT ON FUNCTION inturn._find_locker IS 'Internal: the locker of what keeps a key from others.';
