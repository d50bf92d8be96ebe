-- Returns the first command of a key that was leased just now: by the rules of its topic what it becomes together with
-- those after it, if that has no more octets than this; otherwise the command as it is. Internal to _claim_small.
--
-- max_commands: of how many. No seq: nothing is left of them, or they could not be merged, and the lease has ended with
-- that. octets: the command itself has no more.
-- Runs as the applier: so do the functions that merge. Locks and raises what _end_alone and fail do.
CREATE FUNCTION inturn._first_merged(
    settings inturn.topic, key text, applied_seq bigint, epoch bigint, max_commands integer, octets bigint,
    OUT seq bigint, OUT name text, OUT payload jsonb, OUT created_at timestamptz
)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    most integer := CASE WHEN settings.merges THEN max_commands ELSE 1 END;
    problem text;
BEGIN
    LOOP
        IF settings.merges THEN
            problem := inturn._plan_merges(settings, key, applied_seq, epoch, most);
            IF problem IS NOT NULL THEN
                PERFORM inturn.fail(settings.name, key, epoch, applied_seq + 1, problem, '{"verdict": "merge"}');
                RETURN;
            END IF;
        END IF;
        -- One without a name was merged into nothing: of those, the last.
        SELECT l.seq, l.name, l.payload, l.created_at INTO seq, name, payload, created_at
        FROM inturn._turn_commands(settings.name, ARRAY[key], ARRAY[epoch], ARRAY[applied_seq], most) l
        ORDER BY l.name IS NULL, CASE WHEN l.name IS NULL THEN -l.seq ELSE l.seq END LIMIT 1;
        EXIT WHEN most = 1 OR name IS NULL OR octet_length(payload::text) <= octets;
        most := 1;
    END LOOP;
    IF name IS NULL THEN
        PERFORM inturn._end_alone(settings.name, key, epoch, seq) WHERE seq IS NOT NULL;
        seq := NULL;
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._first_merged IS
    'Internal to _claim_small: the first command of a leased key, merged if that is short.';
