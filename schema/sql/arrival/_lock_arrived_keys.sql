-- Locks the callers' rows of those keys that nobody else has locked, and returns these keys. Internal to _number_topic.
--
-- Locks rows of key_sequence, in byte order, skipping locked ones.
CREATE FUNCTION inturn._lock_arrived_keys(topic text, keys text[]) RETURNS text[]
LANGUAGE sql VOLATILE
SET enable_seqscan = off
AS $$
SELECT ARRAY(SELECT s.key FROM inturn.key_sequence s
             WHERE s.topic = _lock_arrived_keys.topic AND s.key = ANY (keys) ORDER BY s.key FOR UPDATE SKIP LOCKED)
$$;
COMMENT ON FUNCTION inturn._lock_arrived_keys IS 'Internal to the appliers: locks the keys that nobody else has locked.';
