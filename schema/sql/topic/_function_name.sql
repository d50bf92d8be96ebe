-- Returns the name in sql:NAME, as a target and a merge rule name a function; NULL: it names none. Internal. Takes no
-- locks. Qualified, not pinned: it is inlined.
CREATE FUNCTION inturn._function_name(code text) RETURNS text
LANGUAGE sql IMMUTABLE
AS $$
SELECT pg_catalog.substring(code, '^sql:(.+)$')
$$;
COMMENT ON FUNCTION inturn._function_name IS 'Internal: the name of the function that a target or a merge rule names.';
