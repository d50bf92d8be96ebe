-- Refuses a topic if a function that merges its commands has another owner than when its rule was set. Internal to the
-- appliers, see _require_target.
--
-- A function that is missing is not refused here: it fails the merge. Takes no locks. Raises IT013.
CREATE FUNCTION inturn._require_merges(settings inturn.topic) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    rule record;
BEGIN
    IF settings.merges THEN
        FOR rule IN SELECT f.first_name, f.then_name FROM inturn._merge_functions(settings.name) f LOOP
            BEGIN
                PERFORM inturn._trusted_merge(settings.name, rule.first_name, rule.then_name);
            EXCEPTION WHEN SQLSTATE 'IT061' THEN
                CONTINUE;
            END;
        END LOOP;
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._require_merges IS
    'Internal to the appliers: refuses a topic of which a merge function belongs to somebody else.';
