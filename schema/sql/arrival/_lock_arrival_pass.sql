-- Locks and returns what the last pass over a topic's intake saw; a row of NULLs when it is in other hands. Internal to
-- _number_topic.
--
-- here: the server's system identifier. What a pass on another server saw means nothing: seen is NULL then.
-- Where there is no row yet it inserts one, and waits for another session that does.
CREATE FUNCTION inturn._lock_arrival_pass(topic text, here bigint) RETURNS inturn.arrival_pass
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    last inturn.arrival_pass;
BEGIN
    SELECT * INTO last FROM inturn.arrival_pass p
    WHERE p.topic = _lock_arrival_pass.topic ORDER BY p.pass DESC LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        INSERT INTO inturn.arrival_pass (topic, pass, cluster)
        SELECT _lock_arrival_pass.topic, 0, here
        WHERE NOT EXISTS (SELECT FROM inturn.arrival_pass p WHERE p.topic = _lock_arrival_pass.topic)
        ON CONFLICT DO NOTHING RETURNING * INTO last;
    END IF;
    IF last.cluster <> here THEN
        last.seen := NULL;
        last.cluster := here;
    END IF;
    RETURN last;
END
$$;
COMMENT ON FUNCTION inturn._lock_arrival_pass IS 'Internal to the appliers: locks what the last pass over an intake saw.';
