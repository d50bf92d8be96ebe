-- Plans how the next commands of a claimed key are merged; returns NULL, or what went wrong: then nothing is planned.
-- Internal to the claims, which call it for every key of a topic that has merge rules, or had.
--
-- max_commands: 1 for a key that is tried again: nothing is merged. Read the commands by _turn_commands afterwards.
-- The caller holds the key's ticket. Raises nothing of the user's functions: see _call_merge.
CREATE FUNCTION inturn._plan_merges(
    settings inturn.topic, key text, applied_seq bigint, epoch bigint, max_commands integer
) RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    rules constant jsonb := inturn._merge_rules(settings.name);
    folded record;
BEGIN
    IF max_commands > 1 AND rules <> '{}'
        AND current_setting('inturn.merge_cancelled', true) IS DISTINCT FROM now()::text THEN -- see _call_merge
        SELECT * INTO folded FROM inturn._fold_merges(settings, key, applied_seq, epoch, max_commands, rules, true);
        PERFORM inturn._save_merges(settings.name, key, epoch,
                                    CASE WHEN folded.problem IS NULL THEN folded.entries END);
        RETURN folded.problem;
    END IF;
    PERFORM inturn._save_merges(settings.name, key, epoch, NULL);
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION inturn._plan_merges IS 'Internal to the claims: plans how the next commands of a key are merged.';
