-- Returns what a key has beyond a missing next number: the first and the last one there, how many, and when the first
-- of them came; later is 0 where callers do not number, the next one is there, or nothing is. Internal. Takes no locks.
CREATE FUNCTION inturn._find_later(
    c inturn.key_cursor, OUT first_seq bigint, OUT last_seq bigint, OUT later bigint, OUT first_at timestamptz
)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
SELECT min(l.seq), max(l.seq), count(*), min(l.created_at) FROM inturn.command_log l
WHERE l.topic = c.topic AND l.key = c.key AND l.seq > c.applied_seq + 1
  AND EXISTS (SELECT FROM inturn.topic t WHERE t.name = c.topic AND t.numbering = 'given')
  AND NOT EXISTS (SELECT FROM inturn.command_log n
                  WHERE n.topic = c.topic AND n.key = c.key AND n.seq = c.applied_seq + 1)
$$;
COMMENT ON FUNCTION inturn._find_later IS 'Internal: what a key has beyond a missing next number.';
