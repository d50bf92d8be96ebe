-- Returns a topic that SQL can apply. Internal to apply and apply_batch. Takes no locks.
--
-- Raises IT001 for a topic that does not exist, IT012 for one whose target is not a SQL function.
CREATE FUNCTION inturn._sql_topic(name text) RETURNS inturn.topic
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    topic inturn.topic;
BEGIN
    SELECT * INTO topic FROM inturn.topic t WHERE t.name = _sql_topic.name;
    IF NOT FOUND THEN
        PERFORM inturn._refuse_topic(name);
    ELSIF inturn._function_name(topic.target) IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'IT012',
            MESSAGE = format('topic %L has the target %s, which SQL cannot apply', name, topic.target),
            HINT = (SELECT 'Apply it with: ' || replace(k.to_run, '{topic}', inturn._shell_word(name))
                    FROM inturn._kind_of(topic.target) k);
    END IF;
    RETURN topic;
END
$$;
COMMENT ON FUNCTION inturn._sql_topic IS 'Internal to apply and apply_batch: a topic that SQL can apply.';
