-- Removes all that is left of idle keys, and remembers for the topic above which numbers and epochs they go on when
-- they come back.
-- Internal to prune_batch.
--
-- cuts: of them, forgettable, and cut already. The caller holds the keys' rows in key_sequence, so nobody appends;
-- whoever waits for one finds no row, and makes a new one. They have no ticket, so no applier has them.
-- A key that an operator has acted upon since idle_before stays, and one that has a command still: after its last
-- turn, left by a caller whose hint no applier has looked at yet; or before, kept just now for its idempotency key, as
-- where a clock was set back. Returns how many went.
-- Locks, last of all: the topic's row in forgotten.
CREATE FUNCTION inturn._forget_keys(topic text, cuts inturn._cut[], idle_before timestamptz) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    cut inturn._cut;
    gone constant text[] := ARRAY(
        SELECT c.key FROM unnest(cuts) c
        WHERE NOT EXISTS (SELECT FROM inturn.command_log l
                          WHERE l.topic = _forget_keys.topic AND l.key = c.key AND l.seq >= c.from_seq)
          AND NOT EXISTS (SELECT FROM inturn.operator_action a
                          WHERE a.topic = _forget_keys.topic AND a.key = c.key AND a.acted_at >= idle_before));
BEGIN
    IF gone = '{}' THEN
        RETURN 0;
    END IF;
    -- A key alone: see _cut_history.
    FOREACH cut IN ARRAY cuts LOOP
        CONTINUE WHEN cut.key <> ALL (gone);
        DELETE FROM inturn.turn u WHERE u.topic = _forget_keys.topic AND u.key = cut.key AND u.epoch >= cut.epoch;
        DELETE FROM inturn.merge_plan m WHERE m.topic = _forget_keys.topic AND m.key = cut.key;
        DELETE FROM inturn.operator_action a WHERE a.topic = _forget_keys.topic AND a.key = cut.key;
        DELETE FROM inturn.key_sequence s WHERE s.topic = _forget_keys.topic AND s.key = cut.key;
    END LOOP;
    INSERT INTO inturn.forgotten AS f (topic, seq, epoch)
    SELECT _forget_keys.topic, max(c.seq) - 1, max(c.epoch) FROM unnest(cuts) c WHERE c.key = ANY (gone)
    ON CONFLICT ON CONSTRAINT forgotten_pkey DO UPDATE
    SET seq = greatest(f.seq, EXCLUDED.seq), epoch = greatest(f.epoch, EXCLUDED.epoch)
    -- No version where nothing rises: beside a held snapshot each first append would walk over them.
    WHERE f.seq < EXCLUDED.seq OR f.epoch < EXCLUDED.epoch;
    RETURN cardinality(gone);
END
$$;
COMMENT ON FUNCTION inturn._forget_keys IS 'Internal to prune_batch: removes all that is left of idle keys.';
