-- Makes every held or retrying key that the filters of list_keys find ready now; returns the recorded actions.
--
-- of_state: held or retrying. A key in other hands is left out: it is being retried, or acted upon, at this moment.
-- Locks the keys' tickets, skipping locked ones. Raises what list_keys does.
CREATE FUNCTION inturn.retry_all(
    of_topic text DEFAULT NULL, of_state text DEFAULT 'held', of_like text DEFAULT NULL,
    older_than interval DEFAULT NULL, reason text DEFAULT NULL
) RETURNS SETOF inturn.operator_action
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    was inturn.key_cursor;
BEGIN
    PERFORM inturn._require_read_committed();
    FOR was IN
        SELECT c.* FROM inturn.list_keys(of_topic => retry_all.of_topic, of_state => retry_all.of_state, max_keys => 1000000,
                                         of_like => retry_all.of_like, older_than => retry_all.older_than) l
        JOIN inturn.key_cursor c ON c.topic = l.topic AND c.key = l.key
    LOOP
        PERFORM FROM inturn.ticket t WHERE t.topic = was.topic AND t.key = was.key AND t.epoch = was.epoch FOR UPDATE SKIP LOCKED;
        CONTINUE WHEN NOT FOUND;
        -- The list was made before the lock was taken.
        SELECT * INTO was FROM inturn.key_cursor c WHERE c.topic = was.topic AND c.key = was.key;
        CONTINUE WHEN inturn.key_state(was) <> of_state;
        RETURN NEXT inturn._retry_key(was, reason);
    END LOOP;
    PERFORM inturn._notify_appliers(t.name) FROM inturn.topic t WHERE t.name = of_topic OR of_topic IS NULL;
END
$$;
COMMENT ON FUNCTION inturn.retry_all IS 'Makes every held or retrying key that the filters find ready now.';
