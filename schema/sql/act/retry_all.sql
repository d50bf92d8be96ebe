CREATE FUNCTION inturn.retry_all(
    of_topic text DEFAULT NULL, of_state text DEFAULT 'held', of_like text DEFAULT NULL,
    older_than interval DEFAULT NULL, reason text DEFAULT NULL, of_error text DEFAULT NULL
) RETURNS SETOF inturn.operator_action
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
-- Makes every held or retrying key that the filters of list_keys find ready now; returns the recorded actions.
--
-- of_state: held, retrying, or both with a comma between them, which is what NULL means. A key that somebody else has
-- in hand is left out: it is being tried again, or an operator acts on it.
-- Locks the keys' tickets, skipping locked ones. Raises IT044 for another state, and what list_keys does.
DECLARE
    was inturn.key_cursor;
BEGIN
    FOR was IN SELECT * FROM inturn._lock_failed_keys(of_topic, of_state, of_like, older_than, of_error) LOOP
        RETURN NEXT inturn._retry_key(was, reason);
    END LOOP;
    PERFORM inturn._notify_appliers(t.name) FROM inturn.topic t WHERE t.name = of_topic OR of_topic IS NULL;
END
$$;
COMMENT ON FUNCTION inturn.retry_all IS 'Makes every held or retrying key that the filters find ready now.';
