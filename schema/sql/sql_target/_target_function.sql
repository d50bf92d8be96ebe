-- Returns the function that a SQL target names. Internal to _check_topic and _target_query. Takes no locks.
--
-- Raises IT012 when there is no such function taking one inturn.command.
CREATE FUNCTION inturn._target_function(topic text, target text) RETURNS regprocedure
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    name constant text := substr(target, length('sql:') + 1);
    resolved regprocedure;
BEGIN
    BEGIN
        resolved := to_regprocedure(name || '(inturn.command)');
    EXCEPTION WHEN syntax_error_or_access_rule_violation OR data_exception THEN
        resolved := NULL; -- no name at all, or in a schema that this role may not look into
    END;
    IF resolved IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'IT012',
            MESSAGE = format('target of topic %L: there is no function %s(inturn.command)', topic, name),
            HINT = format('Name it with its schema, and create it first: CREATE FUNCTION %s(command inturn.command) RETURNS void ...', name);
    END IF;
    RETURN resolved;
END
$$;
COMMENT ON FUNCTION inturn._target_function IS 'Internal: the function that a SQL target names.';
