-- Saves what a pass over a topic's intake saw, as a new row above the last one. Internal to _number_topic, which lets
-- one pass run at a time.
--
-- Not where the last one is gone by now: somebody wants everything to be looked at (see _take_replicated).
CREATE FUNCTION inturn._save_arrival_pass(pass inturn.arrival_pass) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
BEGIN
    DELETE FROM inturn.arrival_pass p WHERE p.topic = pass.topic AND p.pass = pass.pass;
    IF NOT FOUND AND pass.pass > 0 THEN
        RETURN;
    END IF;
    pass.pass := pass.pass + 1;
    INSERT INTO inturn.arrival_pass SELECT pass.*;
END
$$;
COMMENT ON FUNCTION inturn._save_arrival_pass IS 'Internal to the appliers: saves what a pass over an intake saw.';
