-- Returns the function that a SQL target names. Internal to _target_owner and _trusted_target. Takes no locks.
--
-- A target is a plain function, VOLATILE, that returns no set. The planner may leave out the call of a STABLE one, one
-- that returns a set returns several rows for a command or none, and only functions are called. It takes one
-- inturn.command; or, where there is no such function, inturn.command[]: commands of one key (see _batch_query).
-- Raises IT012 when there is no such function, it is a session's own (pg_temp), it is another kind of routine, or one
-- for batches that returns anything else than void, integer or bigint.
CREATE FUNCTION inturn._target_function(topic text, target text) RETURNS regprocedure
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    name constant text := inturn._function_name(target);
    resolved regprocedure;
    problem text;
BEGIN
    BEGIN
        resolved := coalesce(to_regprocedure(name || '(inturn.command)'),
                             to_regprocedure(name || '(inturn.command[])'));
    EXCEPTION WHEN syntax_error_or_access_rule_violation OR data_exception THEN
        resolved := NULL; -- no name at all, or in a schema that this role may not look into
    END;
    IF resolved IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'IT012',
            MESSAGE = format('target of topic %L: there is no function %s(inturn.command) and no '
                             '%2$s(inturn.command[])', topic, name),
            HINT = format('Name it with its schema, and create it first: CREATE FUNCTION %s(command inturn.command) '
                          'RETURNS void ...', name);
    END IF;
    SELECT CASE WHEN n.nspname ~ '^pg_(toast_)?temp' THEN 'is in a session''s own schema'
                WHEN p.prokind = 'p' THEN 'is a procedure'
                WHEN p.prokind = 'a' THEN 'is an aggregate'
                WHEN p.prokind = 'w' THEN 'is a window function'
                WHEN p.proretset THEN 'returns a set'
                WHEN p.provolatile = 's' THEN 'is declared STABLE'
                WHEN p.provolatile = 'i' THEN 'is declared IMMUTABLE'
                WHEN p.proargtypes[0] = 'inturn.command[]'::regtype
                     AND p.prorettype <> ALL ('{void,integer,bigint}'::regtype[])
                    THEN 'takes several commands and returns ' || format_type(p.prorettype, NULL) END
    INTO problem FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE p.oid = resolved::oid;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'IT012',
            MESSAGE = format('target of topic %L: %s %s', topic, resolved, problem),
            HINT = CASE WHEN problem LIKE '%declared%'
                            THEN format('It would not be called every time: ALTER FUNCTION %s VOLATILE.', resolved)
                        WHEN problem LIKE '%own schema'
                            THEN 'A target is in a schema of the database, where it stays: create it there.'
                        WHEN problem LIKE 'takes%'
                            THEN 'It returns how many of them took effect, as integer or bigint; or void: all of them.'
                        ELSE 'A target is a plain VOLATILE function that returns no set: CREATE FUNCTION ... RETURNS '
                             'void ...' END;
    END IF;
    RETURN resolved;
END
$$;
COMMENT ON FUNCTION inturn._target_function IS 'Internal: the function that a SQL target names.';
