-- Says why a topic is refused although its target is there, see _require_target, and what to do then: lines to type,
-- with {topic} in them. NULL: it is not. Internal to apply, the claims by lease, why and doctor. Takes no locks.
--
-- Only looks up what the role that asks may look into: to others a function that they cannot see is missing.
CREATE FUNCTION inturn._target_refusal(settings inturn.topic, OUT says text, OUT to_do text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    hint text;
BEGIN
    PERFORM inturn._require_target(settings);
EXCEPTION WHEN SQLSTATE 'IT013' THEN
    GET STACKED DIAGNOSTICS says = MESSAGE_TEXT, hint = PG_EXCEPTION_HINT;
    to_do := concat_ws(E'\n', CASE WHEN hint LIKE '%: inturn upgrade.%'
                                       THEN 'inturn upgrade  # by who owns the schema, after a restore or a move' END,
        CASE WHEN says LIKE 'the target of %' THEN format('inturn topic set --target %s {topic}',
                                                               inturn._shell_word(settings.target))
             ELSE (SELECT format('inturn topic merge {topic} %s %s %s', inturn._shell_word(f.first_name),
                                 inturn._shell_word(f.then_name), inturn._shell_word(f.becomes))
                   FROM inturn._merge_functions(settings.name) f
                   WHERE starts_with(says, format('what merges %L and %L of ', f.first_name, f.then_name)) LIMIT 1) END
                 || '  # by a deployer, who has looked at what it does now');
END
$$;
COMMENT ON FUNCTION inturn._target_refusal IS 'Internal: why a topic is refused, and what to do.';
