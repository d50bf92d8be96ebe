CREATE FUNCTION inturn.resume(topic text, key text, reason text DEFAULT NULL) RETURNS inturn.operator_action
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
-- Resumes a paused key where it stood; returns the recorded action.
--
-- Locks, in this order: the key's ticket (see _lock_cursor); its row in key_sequence, if no caller holds it.
-- Raises IT041 when the key is not paused, and what _lock_cursor raises.
DECLARE
    was constant inturn.key_cursor := inturn._lock_cursor(topic, key, beside_lease => true);
    cursor inturn.key_cursor := was;
    state constant text := inturn._stored_state(was);
BEGIN
    IF state <> 'paused' THEN
        PERFORM inturn._refuse_action(topic, key, format('is %s, not paused', state),
            CASE WHEN was.held_at IS NOT NULL AND was.waiting_at IS NOT NULL
                     THEN 'It is held at a missing number: retry it to wait once more, or use fill-gap.'
                 WHEN was.held_at IS NOT NULL THEN 'Retry it, or skip the command that failed.'
                 WHEN (SELECT t.paused_at IS NOT NULL AND coalesce(t.paused_until, 'infinity') > clock_timestamp()
                       FROM inturn.topic t WHERE t.name = resume.topic)
                     THEN 'Its whole topic is paused: resume the topic, without a key.'
                 ELSE 'There is nothing to resume.' END);
    END IF;
    cursor.paused_at := NULL; cursor.paused_until := NULL; cursor.empty_turns := 0;
    RETURN inturn._record_action(topic, key, NULL, 'resume', reason, inturn._key_facts(was),
                                inturn._key_facts(inturn._requeue(was, cursor)));
END
$$;
COMMENT ON FUNCTION inturn.resume IS 'Resumes a paused key where it stood.';
