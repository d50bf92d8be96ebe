CREATE FUNCTION inturn.merge_rule(topic text, first text, "then" text, becomes text,
                                  reason text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- Merges, from now on, two pending commands of a key that follow each other and have these names, first and then;
-- returns true, or false when this rule is there already.
--
-- becomes: 'nothing': neither takes effect. 'last': the later one alone does. 'sql:SCHEMA.FUNCTION': the function takes
-- both as inturn.command and returns the payload, jsonb; it takes effect under the first one's name and the later one's
-- number. Turns that begin from now on do it, of what they read: see _plan_merges. What a turn has read already stays
-- as it was read. A function is a deployer's to name. Who owns it is recorded: once it belongs to anybody else the
-- topic is refused (IT013), until the same rule is set again.
-- Locks: the topic's row. Raises 42501 for a function, unless who calls owns the schema or has inturn_admin; IT062 when
-- the pair has another rule, and what _check_merge_rule and _lock_topic raise.
DECLARE
    was inturn.merge_rule;
    owner text; owner_id text;
BEGIN
    IF inturn._function_name(becomes) IS NOT NULL THEN
        PERFORM inturn._require_admin(topic, 'a function that merges');
    END IF;
    PERFORM inturn._lock_topic(topic);
    PERFORM inturn._check_merge_rule(topic, first, "then", becomes);
    IF inturn._function_name(becomes) IS NOT NULL THEN
        SELECT pg_get_userbyid(p.proowner), inturn._role_id(p.proowner) INTO owner, owner_id
        FROM pg_proc p WHERE p.oid = inturn._merge_function(becomes)::oid;
    END IF;
    SELECT * INTO was FROM inturn.merge_rule r
    WHERE r.topic = merge_rule.topic AND r.first_name = first AND r.then_name = "then";
    IF was.becomes = becomes AND (was.function_owner, was.function_owner_id) IS NOT DISTINCT FROM (owner, owner_id) THEN
        RETURN false;
    ELSIF was.becomes <> becomes THEN
        RAISE EXCEPTION USING ERRCODE = 'IT062',
            MESSAGE = format('topic %L has another rule for %L and then %L: they become %s', topic, first, "then",
                             was.becomes),
            HINT = 'Remove that one first: SELECT inturn.remove_merge_rule(topic, first, then).';
    END IF;
    INSERT INTO inturn.merge_rule AS r (topic, first_name, then_name, becomes, function_owner, function_owner_id)
    VALUES (topic, first, "then", becomes, owner, owner_id)
    ON CONFLICT ON CONSTRAINT merge_rule_pkey DO UPDATE SET function_owner = owner, function_owner_id = owner_id;
    -- It stays when the last rule is removed: whoever claims has to forget then what was planned before.
    UPDATE inturn.topic t SET merges = true WHERE t.name = merge_rule.topic AND NOT t.merges;
    PERFORM inturn._record_action(topic, '', NULL, 'merge-rule', reason, NULL,
        jsonb_strip_nulls(jsonb_build_object('first', first, 'then', "then", 'becomes', becomes,
                                             'function_owner', owner)));
    RETURN true;
END
$$;
COMMENT ON FUNCTION inturn.merge_rule IS 'Lets two pending commands that follow each other be merged, by their names.';
