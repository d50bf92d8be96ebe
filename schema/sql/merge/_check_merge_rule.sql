-- Refuses a merge rule that cannot be. Internal to merge_rule and merge_preview. Takes no locks.
--
-- Both names have to be given: a rule stands for the two that it names, and for no other. Raises IT060, and what
-- _merge_function raises.
CREATE FUNCTION inturn._check_merge_rule(topic text, first text, "then" text, becomes text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    problem text;
BEGIN
    SELECT CASE
        WHEN name IS NULL THEN 'a name is NULL, and would stand for every command'
        WHEN octet_length(name) NOT BETWEEN 1 AND 128
            THEN format('a name has %s octets; a command''s has 1 to 128', octet_length(name))
        WHEN name ~ '[*%]'
            THEN format('the name %L looks like a pattern, and patterns would swallow commands that nobody named', name)
        END INTO problem FROM unnest(ARRAY[first, "then"]) name ORDER BY 1 LIMIT 1;
    IF problem IS NULL
        AND (becomes IN ('nothing', 'last') OR inturn._function_name(becomes) IS NOT NULL) IS NOT TRUE THEN
        problem := format('becomes is %s; nothing, last and sql:SCHEMA.FUNCTION are allowed',
                          coalesce(quote_literal(becomes), 'NULL'));
    END IF;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'IT060',
            MESSAGE = format('merge rule of topic %L is refused: %s', left(topic, 200), problem),
            HINT = 'Name both commands as they are appended, one rule a pair.';
    ELSIF inturn._function_name(becomes) IS NOT NULL THEN
        PERFORM inturn._merge_function(becomes);
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._check_merge_rule IS 'Internal: refuses a merge rule that cannot be.';
