CREATE FUNCTION inturn.remove_merge_rule(topic text, first text, "then" text, reason text DEFAULT NULL)
RETURNS inturn.operator_action
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- Removes a merge rule; returns the recorded action. What turns have read as merged by now stays merged.
--
-- Locks: the topic's row. Raises IT063 when there is no such rule, and what _lock_topic raises.
DECLARE
    was text;
BEGIN
    PERFORM inturn._lock_topic(topic);
    DELETE FROM inturn.merge_rule r
    WHERE r.topic = remove_merge_rule.topic AND r.first_name = first AND r.then_name = "then"
    RETURNING r.becomes INTO was;
    IF was IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'IT063',
            MESSAGE = format('topic %L has no merge rule for %s and then %s', topic,
                             coalesce(quote_literal(first), 'NULL'),
                             coalesce(quote_literal("then"), 'NULL')),
            HINT = 'See those that it has: SELECT * FROM inturn.merge_rule.';
    END IF;
    RETURN inturn._record_action(topic, '', NULL, 'remove-merge-rule', reason,
        jsonb_build_object('first', first, 'then', "then", 'becomes', was), NULL);
END
$$;
COMMENT ON FUNCTION inturn.remove_merge_rule IS 'Removes a merge rule.';
