-- Records what an operator did, and returns the entry. Internal to the operators' functions.
--
-- Who: the session's login; and, as far as the session says so, inturn.os_user and inturn.acting_as (set_config).
CREATE FUNCTION inturn._record_action(
    topic text, key text, seq bigint, action text, reason text, before jsonb, after jsonb
) RETURNS inturn.operator_action
LANGUAGE sql VOLATILE
AS $$
INSERT INTO inturn.operator_action (topic, key, seq, action, reason, os_user, acting_as, before, after)
VALUES (topic, key, seq, action, CASE WHEN NOT inturn._is_blank(reason) THEN trim(reason) END, nullif(current_setting('inturn.os_user', true), ''),
        nullif(current_setting('inturn.acting_as', true), ''), before, after)
RETURNING *
$$;
COMMENT ON FUNCTION inturn._record_action IS 'Internal to the operators'' functions: records what was done, by whom, and why.';
