-- Returns the topics that the session may apply, as far as their appliers have to know them; timeout in seconds.
-- Internal to the appliers. Takes no locks.
--
-- named: IT014 is raised when one of these is granted to other appliers only.
CREATE FUNCTION inturn._list_topics(named text[])
RETURNS TABLE (name text, target text, max_in_flight integer, timeout double precision, merges boolean)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM inturn._require_grant(t.name, 'applier') FROM inturn.topic t WHERE t.name = ANY (named);
    RETURN QUERY
    SELECT t.name, t.target, t.max_in_flight, extract(epoch FROM t.timeout)::double precision, t.merges
    FROM inturn.topic t
    -- Only of a topic that anybody is granted is there more to ask: the question takes longer than all the rest.
    WHERE CASE WHEN EXISTS (SELECT FROM inturn.topic_grant g WHERE g.topic = t.name AND g.role = 'applier')
               THEN inturn._is_granted(t.name, 'applier') ELSE true END;
END
$$;
COMMENT ON FUNCTION inturn._list_topics IS
    'Internal to the appliers: the topics, as far as their appliers have to know them.';
