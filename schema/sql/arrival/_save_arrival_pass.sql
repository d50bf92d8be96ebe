-- Saves what a pass over a topic's intake saw, as a new row above the last one. Internal to _number_topic.
--
-- The caller has locked the last one.
CREATE FUNCTION inturn._save_arrival_pass(last inturn.arrival_pass) RETURNS void
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
BEGIN
    IF last.xid = pg_current_xact_id() THEN
        -- Of this transaction: another one that inserts the topic's first row has to go on meeting it.
        UPDATE inturn.arrival_pass p SET seen = last.seen, looked_back_at = last.looked_back_at
        WHERE p.topic = last.topic AND p.pass = last.pass;
        RETURN;
    END IF;
    DELETE FROM inturn.arrival_pass p WHERE p.topic = last.topic AND p.pass = last.pass;
    INSERT INTO inturn.arrival_pass (topic, pass, seen, cluster, looked_back_at)
    VALUES (last.topic, last.pass + 1, last.seen, last.cluster, last.looked_back_at);
END
$$;
COMMENT ON FUNCTION inturn._save_arrival_pass IS 'Internal to the appliers: saves what a pass over an intake saw.';
