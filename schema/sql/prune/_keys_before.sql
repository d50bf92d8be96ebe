-- Returns the last keys of a topic before a key, from the last to the first. Internal to prune_batch. Takes no locks.
--
-- before: NULL for all. Each is found by the one after it: a prune makes a new version of a key's row, and a scan over
-- the keys would read all that a held snapshot keeps; from the end of a key's entries it meets the newest first.
CREATE FUNCTION inturn._keys_before(topic text, before text, most integer) RETURNS text[]
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    keys text[] := '{}';
BEGIN
    IF before IS NULL THEN
        SELECT s.key || E'\x01' INTO before FROM inturn.key_sequence s
        WHERE s.topic = _keys_before.topic ORDER BY s.key DESC LIMIT 1;
    END IF;
    FOR i IN 1 .. most LOOP
        SELECT s.key INTO before FROM inturn.key_sequence s
        WHERE s.topic = _keys_before.topic AND s.key < before ORDER BY s.key DESC LIMIT 1;
        EXIT WHEN before IS NULL;
        keys[i] := before;
    END LOOP;
    RETURN keys;
END
$$;
COMMENT ON FUNCTION inturn._keys_before IS 'Internal to prune_batch: the last keys of a topic before a key.';
