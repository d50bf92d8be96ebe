-- Says whether whoever runs the session may act as caller, applier or operator on a topic. Internal. Takes no locks.
--
-- On a topic that nobody is granted as `role`, everybody who has the role may act: the grants of the functions say what
-- he may call. Otherwise these may: the roles that were granted it, whoever has the privileges of one of them
-- (pg_has_role, USAGE), the schema's owner; and, as operator, everybody with inturn_admin, who says what code the topic
-- runs anyway.
-- Who that is: the role that the session has SET, or else its login. It is not current_user: in a function that runs as
-- its owner, like this one and every function that asks, that is the owner, and PostgreSQL does not tell who called. So
-- within a user's own SECURITY DEFINER function, the session counts and not that function's owner.
CREATE FUNCTION inturn._is_granted(topic text, role text) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
SELECT NOT EXISTS (SELECT FROM inturn.topic_grant g WHERE g.topic = _is_granted.topic AND g.role = _is_granted.role)
    OR pg_has_role(w.who, current_user, 'USAGE')
    OR _is_granted.role = 'operator' AND pg_has_role(w.who, 'inturn_admin', 'USAGE')
    OR EXISTS (SELECT FROM inturn.topic_grant g JOIN pg_roles r ON r.rolname = g.login::name
               WHERE g.topic = _is_granted.topic AND g.role = _is_granted.role AND pg_has_role(w.who, r.oid, 'USAGE'))
FROM (VALUES (coalesce(nullif(current_setting('role'), 'none')::name, session_user))) w (who)
$$;
COMMENT ON FUNCTION inturn._is_granted IS
    'Internal: whether whoever runs the session may act on a topic as caller, applier or operator.';
