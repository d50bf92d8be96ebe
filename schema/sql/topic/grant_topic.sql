CREATE FUNCTION inturn.grant_topic(topic text, role text, login text,
                                   reason text DEFAULT NULL) RETURNS inturn.operator_action
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- Lets a login act on a topic as caller, applier or operator. From then on only those of that role act on it to whom it
-- is granted. Returns the recorded action.
--
-- login: a role of the server; a group of logins counts for all who are in it. It needs the role inturn_caller,
-- inturn_applier or inturn_operator besides. A turn in a transaction goes on; a lease of somebody else cannot be
-- reported any more, and runs out. Who it is: see _is_granted.
-- Locks: the topic's row.
-- Raises IT011 for a role that does not exist, IT041 when it is granted already, and what _lock_topic raises.
DECLARE
    known constant boolean := inturn._change_grant(topic, role, login);
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = grant_topic.login) THEN
        RAISE EXCEPTION USING ERRCODE = 'IT011',
            MESSAGE = format('topic %L cannot be granted to %s: the server has no such role', topic,
                             coalesce(quote_literal(left(login, 64)), 'NULL')),
            HINT = 'Create it first: CREATE ROLE ... LOGIN.';
    ELSIF known THEN
        PERFORM inturn._refuse_action(topic, '', format('is granted to %s as %s already', login, role),
                                      'Nothing was changed.');
    END IF;
    INSERT INTO inturn.topic_grant (topic, role, login) VALUES (grant_topic.topic, grant_topic.role, grant_topic.login);
    IF role = 'caller' THEN
        UPDATE inturn.topic t SET callers = t.callers || grant_topic.login WHERE t.name = grant_topic.topic;
    END IF;
    RETURN inturn._record_action(topic, '', NULL, 'grant', reason, NULL,
                                 jsonb_build_object('role', role, 'login', login));
END
$$;
COMMENT ON FUNCTION inturn.grant_topic IS
    'Lets a login act on a topic as caller, applier or operator, and nobody else of that role who is not granted it.';
