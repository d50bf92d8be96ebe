-- Returns the last keys of a topic before a key, from the last to the first. Internal to prune_batch. Takes no locks.
--
-- before: NULL for all. Each is found by the one after it: a prune makes a new version of a key's row, and a scan over
-- the keys would read all that a held snapshot keeps; from the end of a key's entries it meets the newest first.
CREATE FUNCTION inturn._keys_before(topic text, before text, most integer) RETURNS text[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
WITH RECURSIVE walk AS (
    (SELECT s.key, 1 AS place FROM inturn.key_sequence s
     WHERE most > 0 AND s.topic = _keys_before.topic AND s.key < coalesce(before, (
         SELECT l.key || E'\x01' FROM inturn.key_sequence l WHERE l.topic = _keys_before.topic
         ORDER BY l.key DESC LIMIT 1))
     ORDER BY s.key DESC LIMIT 1)
    UNION ALL
    SELECT s.key, w.place + 1 FROM walk w CROSS JOIN LATERAL (
        SELECT s.key FROM inturn.key_sequence s
        WHERE s.topic = _keys_before.topic AND s.key < w.key ORDER BY s.key DESC LIMIT 1) s
    WHERE w.place < most)
SELECT ARRAY(SELECT w.key FROM walk w ORDER BY w.place)
$$;
COMMENT ON FUNCTION inturn._keys_before IS 'Internal to prune_batch: the last keys of a topic before a key.';
