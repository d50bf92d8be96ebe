-- Records what an operator did, and returns the entry. Internal to the operators' functions.
--
-- Its id is the time in microseconds, above those of the key, or of the topic itself: no sequence, which a move by
-- logical replication leaves behind; and no count, for which two operators at once would wait for each other's commit,
-- each with keys locked that the other one wants.
-- Takes no locks. Raises IT014 when the topic is granted to other operators only.
-- Who: the session's login; and, as far as the session says so, inturn.os_user and inturn.acting_as (set_config).
CREATE FUNCTION inturn._record_action(
    topic text, key text, seq bigint, action text, reason text, before jsonb, after jsonb
) RETURNS inturn.operator_action
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    recorded inturn.operator_action;
BEGIN
    -- Whatever is recorded passes here, so nothing is done that is not granted.
    PERFORM inturn._require_grant(topic, 'operator');
    LOOP
        -- Again where another one came in the same microsecond.
        INSERT INTO inturn.operator_action (topic, key, id, seq, action, reason, os_user, acting_as, before, after)
        VALUES (_record_action.topic, _record_action.key,
                greatest(extract(epoch FROM clock_timestamp()) * 1000000, 1 + (
                    SELECT a.id FROM inturn.operator_action a
                    WHERE a.topic = _record_action.topic AND a.key = _record_action.key ORDER BY a.id DESC LIMIT 1)),
                _record_action.seq, _record_action.action,
                CASE WHEN NOT inturn._is_blank(_record_action.reason) THEN trim(_record_action.reason) END,
                nullif(current_setting('inturn.os_user', true), ''),
                nullif(current_setting('inturn.acting_as', true), ''),
                _record_action.before, _record_action.after)
        ON CONFLICT DO NOTHING RETURNING * INTO recorded;
        EXIT WHEN FOUND;
    END LOOP;
    RETURN recorded;
END
$$;
COMMENT ON FUNCTION inturn._record_action IS
    'Internal to the operators'' functions: records what was done, by whom, and why.';
