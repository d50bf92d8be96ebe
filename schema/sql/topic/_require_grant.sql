-- Refuses a user who may not act as caller, applier or operator on a topic: see _is_granted. Internal. Takes no
-- locks.
--
-- Nearly always the topic is granted to the very role that asks, and one probe finds that. Raises IT014.
CREATE FUNCTION inturn._require_grant(topic text, role text) RETURNS void
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    who constant text := coalesce(nullif(current_setting('role'), 'none'), session_user);
BEGIN
    IF EXISTS (SELECT FROM inturn.topic_grant g
               WHERE g.topic = _require_grant.topic AND g.role = _require_grant.role AND g.login = who) THEN
        RETURN;
    END IF;
    IF NOT inturn._is_granted(topic, role) THEN
        RAISE EXCEPTION USING ERRCODE = 'IT014',
            MESSAGE = format('topic %L is not granted to %s as %s', topic, who, role),
            HINT = format('It is granted to others only. Whoever owns the schema can: SELECT inturn.grant_topic(%L, '
                          '%L, LOGIN).',
                          topic, role);
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._require_grant IS
    'Internal: refuses whoever may not act on a topic as caller, applier or operator.';
