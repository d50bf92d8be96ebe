-- Returns the function that a SQL target names. Internal to create_topic and the appliers. Takes no locks.
--
-- Raises IT012 when there is no such function taking one inturn.command.
CREATE FUNCTION inturn.target_function(topic text, target text) RETURNS regprocedure
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    name text := substr(target, length('sql:') + 1);
    found regprocedure := to_regprocedure(name || '(inturn.command)');
BEGIN
    IF target NOT LIKE 'sql:%' OR found IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'IT012',
            MESSAGE = CASE WHEN target LIKE 'sql:%'
                THEN format('target of topic %L: there is no function %s(inturn.command)', topic, name)
                ELSE format('topic %L has the target %s, which SQL cannot apply', topic, target) END,
            HINT = CASE WHEN target LIKE 'sql:%'
                THEN format('Name it with its schema, and create it first: CREATE FUNCTION %s(command inturn.command) RETURNS void ...', name)
                ELSE 'Apply it with: inturn apply --app MODULE:APPLIER.' END;
    END IF;
    RETURN found;
END
$$;
COMMENT ON FUNCTION inturn.target_function IS 'Internal: the function that a SQL target names.';
