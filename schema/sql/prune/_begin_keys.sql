-- Lets new keys of a topic begin above every number and epoch that a forgotten one had; returns where they stand.
-- Internal to the appends.
--
-- A key that was forgotten cannot be told from a new one. So once a topic has forgotten any, all its new keys begin
-- there: a receiver that has accepted a number of the key takes the next one still, and nothing of an epoch of before.
-- The caller has just inserted the keys' rows in key_sequence: whatever has forgotten one of them has committed, and a
-- statement of after that sees what it has left. On a snapshot of before it would not: see _refuse_forgotten. Takes no
-- further locks.
CREATE FUNCTION inturn._begin_keys(topic text, keys text[], OUT applied_seq bigint, OUT epoch bigint)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        PERFORM inturn._refuse_forgotten(topic);
    END IF;
    SELECT f.seq, f.epoch INTO applied_seq, epoch FROM inturn.forgotten f WHERE f.topic = _begin_keys.topic;
    IF NOT FOUND THEN
        applied_seq := 0; epoch := 0;
        RETURN;
    END IF;
    UPDATE inturn.key_sequence s SET history_seq = _begin_keys.applied_seq + 1, history_epoch = _begin_keys.epoch
    WHERE s.topic = _begin_keys.topic AND s.key = ANY (keys);
    INSERT INTO inturn.turn (topic, key, epoch, from_seq, to_seq, applied_seq, drained, outcome, applier, started_at)
    SELECT _begin_keys.topic, k.key, _begin_keys.epoch, _begin_keys.applied_seq + 1, _begin_keys.applied_seq,
           _begin_keys.applied_seq,
           true, 'idle', session_user, now()
    FROM unnest(keys) k (key);
END
$$;
COMMENT ON FUNCTION inturn._begin_keys IS
    'Internal to the appends: lets new keys begin above every number that a forgotten one had.';
