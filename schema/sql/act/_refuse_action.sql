-- Refuses what an operator asked for, and tells what another one did to the key last. Internal. Takes no locks.
--
-- problem: why it makes no sense. Raises IT041.
CREATE FUNCTION inturn._refuse_action(topic text, key text, problem text, hint text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    last_action text;
BEGIN
    SELECT format(' (the last action on it: %s%s by %s at %s%s)', a.action, ' of ' || a.seq,
                  coalesce(a.acting_as, a.os_user, a.db_user),
                  to_char(a.acted_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'), ', ' || a.reason)
    INTO last_action FROM inturn.operator_action a
    WHERE a.topic = _refuse_action.topic AND a.key = _refuse_action.key ORDER BY a.id DESC LIMIT 1;
    RAISE EXCEPTION USING ERRCODE = 'IT041',
        MESSAGE = CASE WHEN key = '' THEN format('topic %L %s', topic, problem)
                       ELSE format('key %L of topic %L %s', key, topic, problem) END || coalesce(last_action, ''),
        HINT = hint;
END
$$;
COMMENT ON FUNCTION inturn._refuse_action IS 'Internal to the operators'' functions: refuses what makes no sense.';
