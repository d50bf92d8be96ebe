CREATE FUNCTION inturn.revoke_topic(topic text, role text, login text,
                                    reason text DEFAULT NULL) RETURNS inturn.operator_action
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- Takes back what grant_topic gave; returns the recorded action, whose after says whether the topic is open to the
-- whole role now.
--
-- With the last grant of a role the topic is open again to everybody who has the role. What is in hand goes on.
-- Locks: the topic's row. Raises IT011, IT041 when it is not granted, and what _lock_topic raises.
DECLARE
    known constant boolean := inturn._change_grant(topic, role, login);
    open boolean;
BEGIN
    IF NOT known THEN
        PERFORM inturn._refuse_action(topic, '', format('is not granted to %s as %s', login, role),
                                      'Nothing was changed.');
    END IF;
    DELETE FROM inturn.topic_grant g
    WHERE g.topic = revoke_topic.topic AND g.role = revoke_topic.role AND g.login = revoke_topic.login;
    open := NOT EXISTS (SELECT FROM inturn.topic_grant g
                        WHERE g.topic = revoke_topic.topic AND g.role = revoke_topic.role);
    IF role = 'caller' THEN
        UPDATE inturn.topic t SET callers = nullif(array_remove(t.callers, revoke_topic.login), '{}')
        WHERE t.name = revoke_topic.topic;
    END IF;
    RETURN inturn._record_action(topic, '', NULL, 'revoke', reason, jsonb_build_object('role', role, 'login', login),
                                jsonb_build_object('role', role, 'open', open));
END
$$;
COMMENT ON FUNCTION inturn.revoke_topic IS
    'Takes back what grant_topic gave; with the last grant of a role the topic is open to the whole role again.';
