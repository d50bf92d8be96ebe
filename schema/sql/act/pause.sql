CREATE FUNCTION inturn.pause(topic text, key text, reason text DEFAULT NULL, until timestamptz DEFAULT NULL)
RETURNS inturn.operator_action
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
-- Pauses a key until a time, or until it is resumed; returns the recorded action.
--
-- Waits for the turn in hand (see _lock_cursor). Appends go on; nothing is lost. If it is paused already, the new until
-- replaces the old one.
-- An idle key gets a ticket for the end of the pause: an append leaves it as it is.
-- Locks what _lock_cursor locks.
-- Raises IT041 when the key is held, is paused until the same time, or until is past or after the year 9999; and what
-- _lock_cursor raises.
DECLARE
    was constant inturn.key_cursor := inturn._lock_cursor(topic, key, beside_lease => true);
    paused constant boolean := inturn._stored_state(was) = 'paused';
    cursor inturn.key_cursor := was;
BEGIN
    until := nullif(until, 'infinity'); -- no end is NULL, everywhere
    IF was.held_at IS NOT NULL THEN
        PERFORM inturn._refuse_action(topic, key, 'is held: it stands still already',
                                      'Leave it held for as long as it takes.');
    END IF;
    PERFORM inturn._refuse_until(topic, key, until);
    IF paused AND was.paused_until IS NOT DISTINCT FROM until THEN
        PERFORM inturn._refuse_action(topic, key, 'is paused already', 'Resume it, or give another time.');
    END IF;
    cursor.paused_at := CASE WHEN paused THEN was.paused_at ELSE clock_timestamp() END;
    cursor.paused_until := until;
    -- A lease goes on for the command in hand (see advance), and nobody else has the key before it is over.
    cursor.ready_at := inturn._next_ready_at(cursor, NULL);
    PERFORM inturn._save_key(was, cursor);
    RETURN inturn._record_action(topic, key, NULL, 'pause', reason, inturn._key_facts(was), inturn._key_facts(cursor));
END
$$;
COMMENT ON FUNCTION inturn.pause IS 'Pauses a key until a time, or until it is resumed.';
