-- Returns the function that a merge rule names. Internal to merge_rule and _call_merge. Takes no locks.
--
-- becomes: 'sql:SCHEMA.FUNCTION'. A plain function of two inturn.command that returns jsonb and no set, in a schema
-- that is not a session's own. Raises IT061 when there is no such function.
CREATE FUNCTION inturn._merge_function(becomes text) RETURNS regprocedure
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    name constant text := inturn._function_name(becomes);
    resolved regprocedure;
    problem text;
BEGIN
    BEGIN
        resolved := to_regprocedure(name || '(inturn.command, inturn.command)');
    EXCEPTION WHEN syntax_error_or_access_rule_violation OR data_exception THEN
        resolved := NULL; -- no name at all, or in a schema that this role may not look into
    END;
    IF resolved IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'IT061',
            MESSAGE = format('there is no function %s(inturn.command, inturn.command)', name),
            HINT = format('Name it with its schema, and create it first: CREATE FUNCTION %s(first inturn.command, '
                          'second inturn.command) RETURNS jsonb ...', name);
    END IF;
    SELECT CASE WHEN p.prokind = 'p' THEN 'is a procedure'
                WHEN p.prokind = 'a' THEN 'is an aggregate'
                WHEN p.prokind = 'w' THEN 'is a window function'
                WHEN p.proretset THEN 'returns a set'
                WHEN p.prorettype <> 'jsonb'::regtype THEN format('returns %s', format_type(p.prorettype, NULL))
                WHEN n.nspname ~ '^pg_(toast_)?temp' THEN 'is in a session''s own schema' END
    INTO problem FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE p.oid = resolved::oid;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'IT061',
            MESSAGE = format('%s %s', resolved, problem),
            HINT = 'What merges two commands is a plain function in a schema of the database that returns jsonb, the '
                   'payload.';
    END IF;
    RETURN resolved;
END
$$;
COMMENT ON FUNCTION inturn._merge_function IS 'Internal: the function that a merge rule names.';
