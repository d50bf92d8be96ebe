CREATE FUNCTION inturn.amend(
    topic text, key text, seq bigint, reason text,
    name text DEFAULT NULL, payload jsonb DEFAULT NULL, was jsonb DEFAULT NULL
) RETURNS inturn.operator_action
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
-- Changes the name or the payload of a pending command; returns the recorded action, whose before has the original.
--
-- name, payload: NULL leaves it as it is. was: the payload that the operator saw; NULL: whatever it is.
-- Locks: the key's ticket (see _lock_cursor), so that no applier has read the command; its row in the log.
-- Raises IT041 when seq is not pending, is not what the operator saw, or nothing would change; IT043 without a reason;
-- what _refuse_command and _lock_cursor raise.
DECLARE
    was_cursor inturn.key_cursor;
    cursor inturn.key_cursor;
    command inturn.command_log;
BEGIN
    PERFORM inturn._require_reason('amend', reason);
    was_cursor := inturn._lock_cursor(topic, key);
    cursor := was_cursor;
    SELECT * INTO command FROM inturn.command_log l
    WHERE l.topic = amend.topic AND l.key = amend.key AND l.seq = amend.seq FOR UPDATE;
    IF command.seq IS NULL THEN
        PERFORM inturn._refuse_action(topic, key, inturn._no_command(topic, key, seq),
                                      'See its commands with inturn show.');
    ELSIF seq <= cursor.applied_seq THEN
        PERFORM inturn._refuse_action(topic, key, format('has command %s behind it: it is at %s', seq,
                                                         cursor.applied_seq),
            'What was applied or skipped cannot be amended; append a new command instead.');
    ELSIF was IS DISTINCT FROM command.payload AND was IS NOT NULL THEN
        PERFORM inturn._refuse_action(topic, key, format('has another payload in command %s than it had when you '
                                                         'looked', seq),
            'Look again with inturn show, then amend what is there now.');
    ELSIF (coalesce(amend.name, command.name),
           coalesce(amend.payload, command.payload)) = (command.name, command.payload) THEN
        PERFORM inturn._refuse_action(topic, key, format('has command %s like that already', seq),
                                      'Nothing was changed.');
    END IF;
    PERFORM inturn._refuse_command(topic, key, coalesce(amend.name, command.name),
                                   coalesce(amend.payload, command.payload), NULL);
    UPDATE inturn.command_log l SET name = coalesce(amend.name, l.name), payload = coalesce(amend.payload, l.payload)
    WHERE l.topic = amend.topic AND l.key = amend.key AND l.seq = amend.seq;
    -- An applier whose lease ran out has read it as it was: its report is refused from now on.
    IF was_cursor.claimed_by IS NOT NULL THEN
        cursor.epoch := was_cursor.epoch + 1;
        cursor.claimed_by := NULL; cursor.claimed_at := NULL; cursor.lease_until := NULL;
        PERFORM inturn._save_key(was_cursor, cursor);
    END IF;
    RETURN inturn._record_action(topic, key, seq, 'amend', reason,
        jsonb_build_object('name', command.name, 'payload', command.payload),
        jsonb_build_object('name', coalesce(amend.name, command.name), 'payload',
                           coalesce(amend.payload, command.payload)));
END
$$;
COMMENT ON FUNCTION inturn.amend IS
    'Changes the name or the payload of a pending command; the original stays in operator_action.';
