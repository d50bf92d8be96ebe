CREATE FUNCTION inturn.retry(topic text, key text, reason text DEFAULT NULL) RETURNS inturn.operator_action
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- Makes a held or retrying key ready now, with all its attempts before it again; returns the recorded action.
-- So it does a key that was put off after what counts as no attempt, such as an outage of its target.
-- A key that is held at a missing number waits for that once more.
--
-- Locks what _lock_cursor locks.
-- Raises IT041 when the key waits for no next attempt, and what _lock_cursor raises.
DECLARE
    was constant inturn.key_cursor := inturn._lock_cursor(topic, key, beside_lease => true);
    state text := inturn._stored_state(was);
BEGIN
    IF state NOT IN ('held', 'retrying') AND (
        state = 'ready' AND was.last_error IS NOT NULL AND was.ready_at > clock_timestamp()) IS NOT TRUE
    THEN
        state := inturn._seen_state(was);
        PERFORM inturn._refuse_action(topic, key, format('is %s: there is no failed command to retry', state),
            CASE state WHEN 'paused' THEN 'Resume it instead.'
                 WHEN 'waiting' THEN 'Append the command that it waits for, or go on without it by fill-gap.'
                 WHEN 'leased' THEN 'An applier is at work on it.'
                 WHEN 'idle' THEN 'Nothing is pending on it.'
                 ELSE 'What is pending is applied in its turn.' END);
    END IF;
    PERFORM inturn._notify_appliers(topic);
    RETURN inturn._retry_key(was, reason);
END
$$;
COMMENT ON FUNCTION inturn.retry IS
    'Makes a held, retrying or put off key ready now, with all its attempts before it again.';
