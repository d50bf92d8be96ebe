-- Returns the topics whose keys, payloads and errors whoever runs the session may not see: those that are granted to
-- other operators only. Internal to what operators read, and to the policies of the tables. Takes no locks.
--
-- Who that is: see _is_granted. The schema's owner, and everybody with inturn_admin, sees all. Numbers of them, as in
-- metrics, are not secret, and neither are their names and settings.
CREATE FUNCTION inturn._hidden_topics() RETURNS text[]
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
SELECT ARRAY(
    SELECT g.topic FROM (SELECT DISTINCT g.topic FROM inturn.topic_grant g WHERE g.role = 'operator') g
    WHERE NOT inturn._is_granted(g.topic, 'operator') ORDER BY g.topic)
$$;
COMMENT ON FUNCTION inturn._hidden_topics IS 'Internal: the topics that are granted to other operators only.';
