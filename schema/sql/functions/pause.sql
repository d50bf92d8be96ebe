-- Keeps a key standing still, until a time or for good; returns the recorded action.
--
-- Waits for the turn in hand (see lock_cursor). Appends go on; nothing is lost. Paused already, it takes the new until.
-- Locks: the key's row in key_cursor.
-- Raises IT041 when the key is held, is paused until the same time, or until is past; and what lock_cursor raises.
CREATE FUNCTION inturn.pause(topic text, key text, reason text DEFAULT NULL, until timestamptz DEFAULT NULL)
RETURNS inturn.operator_action
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    was constant inturn.key_cursor := inturn.lock_cursor(topic, key, beside_lease => true);
    paused constant boolean := inturn.key_state(was) = 'paused';
    cursor inturn.key_cursor;
BEGIN
    IF was.held_at IS NOT NULL THEN
        PERFORM inturn.refuse_action(topic, key, 'is held: it stands still already', 'Leave it held for as long as it takes.');
    ELSIF until <= clock_timestamp() THEN
        PERFORM inturn.refuse_action(topic, key, format('cannot be paused until %s, which is past', until), 'Give a later time.');
    ELSIF paused AND was.paused_until IS NOT DISTINCT FROM until THEN
        PERFORM inturn.refuse_action(topic, key, 'is paused already', 'Resume it, or give another time.');
    END IF;
    UPDATE inturn.key_cursor c SET
        paused_at = CASE WHEN paused THEN c.paused_at ELSE clock_timestamp() END, paused_until = until,
        -- A drained key with nothing pending stays idle: the append that wakes it reads paused_until.
        ready_at = CASE WHEN EXISTS (
                SELECT FROM inturn.command_log l WHERE l.topic = c.topic AND l.key = c.key AND l.seq = c.applied_seq + 1)
            OR EXISTS (
                SELECT FROM inturn.key_sequence s WHERE s.topic = c.topic AND s.key = c.key AND s.drained_seq < c.applied_seq)
            -- Where callers number: an append beside a claim counts on the key's being ready, and a gap may time out.
            OR c.ready_at IS NOT NULL OR c.waiting_at IS NOT NULL
            -- A lease goes on for the command in hand (see advance), and nobody else has the key before it is over.
            THEN greatest(until, CASE WHEN until IS NOT NULL THEN c.lease_until END) END
    WHERE c.topic = pause.topic AND c.key = pause.key RETURNING * INTO cursor;
    RETURN inturn.record_action(topic, key, NULL, 'pause', reason, inturn.key_facts(was), inturn.key_facts(cursor));
END
$$;
COMMENT ON FUNCTION inturn.pause IS 'Keeps a key standing still, until a time or for good.';
