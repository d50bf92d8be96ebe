-- Locks a topic for an operator, and returns it. Internal to the operators' functions.
--
-- Callers and appliers only read topics: they do not wait for this lock, other operators do. Raises IT001, IT014.
CREATE FUNCTION inturn._lock_topic(name text) RETURNS inturn.topic
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    topic inturn.topic;
BEGIN
    PERFORM inturn._require_grant(name, 'operator');
    SELECT * INTO topic FROM inturn.topic t WHERE t.name = _lock_topic.name FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM inturn._refuse_topic(name);
    END IF;
    RETURN topic;
END
$$;
COMMENT ON FUNCTION inturn._lock_topic IS 'Internal to the operators'' functions: locks a topic and returns it.';
