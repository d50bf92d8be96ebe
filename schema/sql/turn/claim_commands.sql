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
    problem text;
    keys text[]; applied_seqs bigint[]; epochs bigint[]; attempts integer[];
    times timestamptz[]; losses boolean[]; singles boolean[];
    command record;
    place bigint := 0;
BEGIN
    PERFORM inturn._require_merges(settings);
    SELECT array_agg(c.key), array_agg(c.applied_seq), array_agg(c.epoch), array_agg(c.attempts + 1),
           array_agg(c.ready_at),
           array_agg(c.lost), array_agg(c.attempts > 0 OR settings.merges AND c.lost)
    INTO keys, applied_seqs, epochs, attempts, times, losses, singles FROM inturn.claim(topic, since, max_keys) c;
    FOR n IN 1 .. CASE WHEN settings.merges THEN coalesce(cardinality(keys), 0) ELSE 0 END LOOP
        problem := inturn._plan_merges(
            settings, keys[n], applied_seqs[n], epochs[n],
            CASE WHEN singles[n] THEN 1 ELSE settings.batch_commands END);
        IF problem IS NOT NULL THEN
            PERFORM inturn.fail(topic, keys[n], epochs[n], applied_seqs[n] + 1, applied_seqs[n] + 1, problem,
                                session_user::text, 'merge', took => '0'); -- what comes next is not merged
            keys[n] := NULL;
        END IF;
    END LOOP;
    -- All keys by one call: one for each costs three times as much as the reading.
    FOR command IN
        SELECT k.*, l.seq, l.name, l.payload, l.created_at
        FROM ROWS FROM (unnest(keys), unnest(applied_seqs), unnest(epochs), unnest(attempts), unnest(times),
                        unnest(losses), unnest(singles))
            WITH ORDINALITY k (key, applied_seq, epoch, attempt, ready_at, lost, is_single, place)
        LEFT JOIN inturn._turn_commands(settings.name, keys, epochs, applied_seqs,
                                        settings.batch_commands) l ON l.place = k.place
        WHERE k.key IS NOT NULL
        ORDER BY k.place, l.seq
    LOOP
        CONTINUE WHEN command.is_single AND command.place = place;
        size := coalesce(octet_length(command.payload::text), 0);
        IF octets > 0 AND octets + size > max_octets THEN
            RETURN;
        END IF;
        octets := octets + size;
        place := command.place;
        key := command.key; applied_seq := command.applied_seq; epoch := command.epoch; attempt := command.attempt;
        ready_at := command.ready_at; lost := command.lost;
        seq := command.seq; name := command.name; payload := command.payload; created_at := command.created_at;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION inturn.claim_commands IS 'Claims ready keys and returns their next commands in order.';
