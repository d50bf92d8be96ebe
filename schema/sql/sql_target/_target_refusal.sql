-- Says why a topic is refused although its target is there, see _require_target, and what to do then, as why does;
-- NULL: it is not. Internal to apply, the claims by lease and why. Takes no locks.
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
             ELSE 'inturn topic merge {topic} FIRST THEN sql:SCHEMA.FUNCTION' END
                 || '  # by a deployer, who has looked at what it does now');
END
$$;
COMMENT ON FUNCTION inturn._target_refusal IS 'Internal to the appliers and why: why a topic is refused.';
