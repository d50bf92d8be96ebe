-- Records what an operator did, and returns the entry. Internal to the operators' functions.
--
-- Raises IT014 when the topic is granted to other operators only.
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
    INSERT INTO inturn.operator_action (topic, key, seq, action, reason, os_user, acting_as, before, after)
    VALUES (_record_action.topic, _record_action.key, _record_action.seq, _record_action.action,
            CASE WHEN NOT inturn._is_blank(_record_action.reason) THEN trim(_record_action.reason) END,
            nullif(current_setting('inturn.os_user', true), ''), nullif(current_setting('inturn.acting_as', true), ''),
            _record_action.before, _record_action.after)
    RETURNING * INTO recorded;
    RETURN recorded;
END
$$;
COMMENT ON FUNCTION inturn._record_action IS 'Internal to the operators'' functions: records what was done, by whom, and why.';
