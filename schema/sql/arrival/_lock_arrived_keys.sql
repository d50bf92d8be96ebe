-- Locks the callers' rows of those keys that nobody else has locked, and returns these keys. New keys get their row
-- first.
-- Internal to _number_topic and _number_left_behind, which comes back for a key that a prune forgets at this moment.
--
-- Locks rows of key_sequence, in byte order, skipping locked ones.
CREATE FUNCTION inturn._lock_arrived_keys(topic text, keys text[]) RETURNS text[]
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    fresh text[];
BEGIN
    WITH made AS (
        INSERT INTO inturn.key_sequence (topic, key, arrival)
        SELECT _lock_arrived_keys.topic, k.key, true FROM unnest(keys) k (key)
        -- A row that somebody deletes at this moment can be seen still: an insert of it would wait for him.
        WHERE (SELECT true FROM inturn.key_sequence s
               WHERE s.topic = _lock_arrived_keys.topic AND s.key >= k.key AND s.key <= k.key
               ORDER BY s.key DESC LIMIT 1) IS NULL
        ON CONFLICT DO NOTHING RETURNING key_sequence.key
    )
    SELECT array_agg(m.key) INTO fresh FROM made m;
    IF fresh IS NOT NULL THEN
        PERFORM inturn._begin_keys(topic, fresh);
    END IF;
    RETURN ARRAY(SELECT s.key FROM (SELECT DISTINCT k.key COLLATE "C" AS key FROM unnest(keys) k (key) ORDER BY 1) k
                 CROSS JOIN LATERAL (
                     SELECT s.key FROM inturn.key_sequence s
                     WHERE s.topic = _lock_arrived_keys.topic AND s.key >= k.key AND s.key <= k.key
                     ORDER BY s.key DESC LIMIT 1 FOR UPDATE SKIP LOCKED) s);
END
$$;
COMMENT ON FUNCTION inturn._lock_arrived_keys IS
    'Internal to the appliers: locks the keys that nobody else has locked.';
