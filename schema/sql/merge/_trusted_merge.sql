-- Returns the function that a merge rule names, as it is when it is called. Internal to _call_merge and
-- _require_merges. Takes no locks.
--
-- Raises what _merge_function does; IT013 when it belongs to somebody else than when the rule was set.
CREATE FUNCTION inturn._trusted_merge(topic text, first text, "then" text) RETURNS regprocedure
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    rule record;
    resolved regprocedure;
BEGIN
    SELECT * INTO rule FROM inturn._merge_functions(topic) f WHERE f.first_name = first AND f.then_name = "then";
    resolved := inturn._merge_function(rule.becomes);
    PERFORM inturn._require_owner(format('what merges %L and %L of topic %L', first, "then", topic), resolved,
                                  rule.owner, rule.owner_id,
        format('SELECT inturn.merge_rule(%L, %L, %L, %L).', topic, first, "then", rule.becomes));
    RETURN resolved;
END
$$;
COMMENT ON FUNCTION inturn._trusted_merge IS
    'Internal: the function that a merge rule names, if it belongs to whom it did.';
