-- Looks at the functions that targets name, and merge rules: a row for each topic that has one. Internal to doctor.
-- Takes no locks.
--
-- says, to_do: why it is refused, see _target_refusal; or why its target cannot be called, and then to_do is NULL.
-- Otherwise function is its target, and named how that is written.
-- Runs as its owner, as why does: to an operator who may not use its schema a function would be missing.
CREATE FUNCTION inturn._look_at_targets()
RETURNS TABLE (topic text, says text, to_do text, function oid, named text)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    settings inturn.topic;
BEGIN
    FOR settings IN
        SELECT * FROM inturn.topic t WHERE t.merges OR inturn._function_name(t.target) IS NOT NULL ORDER BY t.name
    LOOP
        topic := settings.name; function := NULL; named := NULL;
        SELECT r.says, r.to_do INTO says, to_do FROM inturn._target_refusal(settings) r;
        IF says IS NULL AND inturn._function_name(settings.target) IS NOT NULL THEN
            BEGIN
                function := inturn._trusted_target(settings)::oid; named := function::regprocedure;
            EXCEPTION WHEN SQLSTATE 'IT012' THEN
                GET STACKED DIAGNOSTICS says = MESSAGE_TEXT;
            END;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION inturn._look_at_targets IS 'Internal to doctor: the functions that targets and merge rules name.';
