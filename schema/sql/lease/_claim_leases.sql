-- Claims ready keys of some topics by lease, for claim(text[], integer, interval, text), which says what that means.
-- Internal.
--
-- one_by_one: a key that itself makes that fail is put off (see _try_lease), at the price of a subtransaction a key.
-- Runs as the applier: so do the functions that merge, between the lease and the reading. Locks and raises what claim
-- does.
CREATE FUNCTION inturn._claim_leases(topics text[], max_keys integer, lease interval, applier text, one_by_one boolean)
RETURNS TABLE (
    topic text, key text, epoch bigint, attempt integer, lease_until timestamptz,
    seq bigint, name text, payload jsonb, created_at timestamptz
)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    pass inturn._pass;
    served record;
    claimed record;
    begun record;
    taken integer := 0;
    max_octets constant bigint := inturn._max_claim_octets();
    octets bigint := 0; size integer; command record; settings inturn.topic; problem text; gone_seq bigint;
BEGIN
    pass := inturn._begin_saved_pass(topics);
    <<all_topics>>
    FOR served IN
        SELECT t.name, p.hand FROM unnest(topics) WITH ORDINALITY t (name, position)
        JOIN unnest(pass.found, pass.starts) p (topic, hand) ON p.topic = t.name ORDER BY t.position
    LOOP
        EXIT WHEN taken >= max_keys;
        settings := inturn._settings_of(served.name);
        IF settings.merges THEN
            CONTINUE WHEN cardinality(topics) > 1 AND inturn._leave_out(settings, '{}');
            PERFORM inturn._require_merges(settings);
        END IF;
        FOR claimed IN SELECT * FROM inturn.claim(served.name, served.hand, max_keys - taken) LOOP
            SELECT * INTO begun FROM inturn._lease_claimed(
                served.name, claimed.key, claimed.epoch, lease, applier, one_by_one,
                CASE WHEN octets > 0 THEN max_octets - octets END);
            EXIT all_topics WHEN NOT begun.fits;
            taken := taken + 1;
            CONTINUE WHEN (begun.leased).key IS NULL;
            topic := served.name; key := claimed.key; epoch := claimed.epoch;
            attempt := (begun.leased).attempts + 1; lease_until := (begun.leased).lease_until;
            seq := NULL; gone_seq := NULL;
            problem := CASE WHEN settings.merges THEN
                inturn._plan_merges(settings, claimed.key, claimed.applied_seq, claimed.epoch, begun.max_commands) END;
            IF problem IS NOT NULL THEN
                PERFORM inturn.fail(topic, key, epoch, claimed.applied_seq + 1, problem, '{"verdict": "merge"}');
                CONTINUE;
            END IF;
            FOR command IN
                SELECT l.seq, l.name, l.payload, l.created_at FROM inturn._turn_commands(
                    topic, ARRAY[key], ARRAY[epoch], ARRAY[claimed.applied_seq], begun.max_commands) l
            LOOP
                IF command.name IS NULL THEN
                    -- Merged into nothing: it is done when the turn ends beyond it.
                    gone_seq := command.seq;
                    CONTINUE;
                END IF;
                size := octet_length(command.payload::text);
                IF octets > 0 AND octets + size > max_octets THEN
                    -- Merged, it is longer than what _lease_claimed has looked at: nobody would know of the lease.
                    PERFORM inturn._end_alone(topic, key, epoch, coalesce(gone_seq, claimed.applied_seq))
                    WHERE seq IS NULL;
                    RETURN;
                END IF;
                octets := octets + size;
                seq := command.seq; name := command.name; payload := command.payload; created_at := command.created_at;
                RETURN NEXT;
            END LOOP;
            -- Nothing is left to do on a key whose commands were all merged into nothing.
            PERFORM inturn._end_alone(topic, key, epoch, gone_seq) WHERE seq IS NULL AND gone_seq IS NOT NULL;
        END LOOP;
    END LOOP;
END
$$;
COMMENT ON FUNCTION inturn._claim_leases IS 'Internal to claim: claims ready keys of some topics by lease.';
