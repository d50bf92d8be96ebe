-- Returns the topics that a call of apply serves: those that it names, or all that SQL can apply and the session may.
-- Internal to apply. Takes no locks.
--
-- Raises what _sql_topic does.
CREATE FUNCTION inturn._sql_topics(topics text[]) RETURNS text[]
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF topics IS NULL THEN
        RETURN ARRAY(SELECT t.name FROM inturn.topic t
                     WHERE inturn._function_name(t.target) IS NOT NULL
                       AND inturn._is_granted(t.name, 'applier') ORDER BY t.name);
    END IF;
    PERFORM inturn._sql_topic(t.name) FROM unnest(topics) t (name);
    RETURN topics;
END
$$;
COMMENT ON FUNCTION inturn._sql_topics IS 'Internal to apply: the topics that a call serves.';
