-- Locks a topic for a change of its grants, and refuses what cannot be granted. Internal to grant_topic and
-- revoke_topic.
--
-- Returns whether the login has the grant. Locks: the topic's row. Raises IT011 for a role that is none of the three,
-- and what _lock_topic raises.
CREATE FUNCTION inturn._change_grant(topic text, role text, login text) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM inturn._lock_topic(topic);
    IF (role IN ('caller', 'applier', 'operator')) IS NOT TRUE THEN
        RAISE EXCEPTION USING ERRCODE = 'IT011',
            MESSAGE = format('topic %L cannot be granted as %s', topic,
                             coalesce(quote_literal(left(role, 40)), 'NULL')),
            HINT = 'Give caller, applier or operator.';
    END IF;
    RETURN EXISTS (SELECT FROM inturn.topic_grant g
                   WHERE g.topic = _change_grant.topic AND g.role = _change_grant.role
                     AND g.login = _change_grant.login);
END
$$;
COMMENT ON FUNCTION inturn._change_grant IS
    'Internal to grant_topic and revoke_topic: locks a topic for a change of its grants.';
