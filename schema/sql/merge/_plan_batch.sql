-- Plans the merges of keys that a batch has claimed; returns those whose commands could not be merged, after their
-- failure has been recorded: the batch has them no more. Internal to apply_batch.
--
-- The arrays run in parallel. max_commands: of a key that is not tried again. Raises and locks what fail does.
CREATE FUNCTION inturn._plan_batch(
    settings inturn.topic, keys text[], epochs bigint[], applied_seqs bigint[], attempts integer[],
    max_commands integer, applier text
) RETURNS text[]
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    failed text[] := '{}';
    claimed record;
    problem text;
BEGIN
    FOR claimed IN SELECT * FROM unnest(keys, epochs, applied_seqs, attempts) t (key, epoch, applied_seq, attempts) LOOP
        problem := inturn._plan_merges(settings, claimed.key, claimed.applied_seq, claimed.epoch,
                                      CASE WHEN claimed.attempts > 0 THEN 1 ELSE max_commands END);
        IF problem IS NOT NULL THEN
            PERFORM inturn.fail(settings.name, claimed.key, claimed.epoch, claimed.applied_seq + 1,
                                claimed.applied_seq + 1,
                                problem, applier, 'merge', took => '0'); -- what comes next is not merged
            failed := failed || claimed.key;
        END IF;
    END LOOP;
    RETURN failed;
END
$$;
COMMENT ON FUNCTION inturn._plan_batch IS 'Internal to apply_batch: plans the merges of keys that a batch has claimed.';
