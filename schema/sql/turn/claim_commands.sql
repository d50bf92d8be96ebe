CREATE FUNCTION inturn.claim_commands(topic text, since timestamptz DEFAULT '-infinity', max_keys integer DEFAULT 1)
RETURNS TABLE (
    key text, applied_seq bigint, epoch bigint, attempt integer, ready_at timestamptz,
    seq bigint, name text, payload jsonb, created_at timestamptz, lost boolean
)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- Claims ready keys as claim does, and returns their next commands in order: what a Python target applies.
--
-- A key comes with at most the topic's batch_commands; one whose next command has failed before, with that alone.
-- A key with nothing to apply comes as one row without a seq; it has to be finished too.
-- All payloads together have at most _max_claim_octets, but the first command comes however long it is. From where they
-- would have more, a key comes with fewer commands, or not at all: it stays ready, and is locked as the others are.
-- Where the topic has merge rules, of commands that were merged only the last one comes, with what they became; those
-- that became nothing come as a row with a seq and no name, and are done by passing there: finish with that seq. What
-- cannot be merged is a failure of its key, which does not come (see _plan_merges).
-- Runs as the applier, as the functions that merge do; what claims and what reads, each for itself, as the schema's
-- owner. Locks and raises what claim does; IT013 where a function that merges belongs to somebody else than when its
-- rule was set: then nothing was claimed.
DECLARE
    max_octets constant bigint := inturn._max_claim_octets();
    octets bigint := 0;
    size integer;
    settings constant inturn.topic := inturn._settings_of(topic);
    max_commands integer;
    problem text;
    claimed record;
    command record;
BEGIN
    PERFORM inturn._require_merges(settings);
    FOR claimed IN SELECT * FROM inturn.claim(topic, since, max_keys) LOOP
        key := claimed.key; applied_seq := claimed.applied_seq; epoch := claimed.epoch;
        attempt := claimed.attempts + 1; ready_at := claimed.ready_at; lost := claimed.lost;
        seq := NULL; name := NULL; payload := NULL; created_at := NULL;
        max_commands := CASE WHEN claimed.attempts > 0 OR settings.merges AND lost THEN 1 ELSE settings.batch_commands END;
        IF settings.merges THEN
            problem := inturn._plan_merges(settings, claimed.key, claimed.applied_seq, claimed.epoch, max_commands);
            IF problem IS NOT NULL THEN
                PERFORM inturn.fail(topic, key, epoch, applied_seq + 1, applied_seq + 1, problem, session_user::text, 'merge');
                CONTINUE;
            END IF;
        END IF;
        FOR command IN
            SELECT l.seq, l.name, l.payload, l.created_at FROM inturn._turn_commands(
                settings.name, ARRAY[claimed.key], ARRAY[claimed.epoch], ARRAY[claimed.applied_seq], max_commands) l
        LOOP
            size := coalesce(octet_length(command.payload::text), 0);
            IF octets > 0 AND octets + size > max_octets THEN
                RETURN;
            END IF;
            octets := octets + size;
            seq := command.seq; name := command.name; payload := command.payload; created_at := command.created_at;
            RETURN NEXT;
        END LOOP;
        IF seq IS NULL THEN
            RETURN NEXT;
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION inturn.claim_commands IS 'Claims ready keys and returns their next commands in order.';
