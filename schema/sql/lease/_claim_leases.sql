-- Claims ready keys of some topics by lease, for claim(text[], integer, interval, text), which says what that means. Internal.
--
-- one_by_one: a key that itself makes that fail is put off (see _try_lease), at the price of a subtransaction a key.
-- Locks and raises what claim does.
CREATE FUNCTION inturn._claim_leases(topics text[], max_keys integer, lease interval, applier text, one_by_one boolean)
RETURNS TABLE (
    topic text, key text, epoch bigint, attempt integer, lease_until timestamptz,
    seq bigint, name text, payload jsonb, created_at timestamptz
)
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
#variable_conflict use_column
DECLARE
    pass inturn._pass;
    served record;
    settings inturn.topic;
    claimed record;
    taken integer := 0;
    leased inturn.key_cursor;
    max_octets constant bigint := inturn._max_claim_octets();
    octets bigint := 0; size integer; command record; max_commands integer; problem text; gone_seq bigint;
BEGIN
    pass := inturn._begin_saved_pass(topics);
    FOR served IN
        SELECT t.name, p.hand FROM unnest(topics) WITH ORDINALITY t (name, position)
        JOIN unnest(pass.found, pass.starts) p (topic, hand) ON p.topic = t.name ORDER BY t.position
    LOOP
        EXIT WHEN taken >= max_keys;
        SELECT * INTO settings FROM inturn.topic t WHERE t.name = served.name;
        FOR claimed IN SELECT * FROM inturn.claim(served.name, served.hand, max_keys - taken) LOOP
            SELECT octet_length(l.payload::text) INTO size FROM inturn.command_log l
            WHERE octets > 0 AND l.topic = served.name AND l.key = claimed.key AND l.seq = claimed.applied_seq + 1;
            IF octets + size > max_octets THEN
                RETURN;
            END IF;
            taken := taken + 1;
            IF one_by_one THEN
                leased := inturn._try_lease(settings, claimed.key, claimed.applied_seq, claimed.epoch, lease, applier);
            ELSE
                leased := inturn._begin_lease(settings, claimed.key, claimed.applied_seq, claimed.epoch, lease, applier);
            END IF;
            CONTINUE WHEN leased.key IS NULL;
            topic := leased.topic; key := leased.key; epoch := leased.epoch;
            attempt := leased.attempts + 1; lease_until := leased.lease_until;
            max_commands := CASE WHEN leased.attempts > 0 OR leased.lost > 0 THEN 1 ELSE settings.batch_commands END;
            gone_seq := NULL;
            IF settings.merges THEN
                problem := inturn._plan_merges(settings, leased.key, leased.applied_seq, leased.epoch, max_commands);
                IF problem IS NOT NULL THEN
                    PERFORM inturn.fail(served.name, leased.key, leased.epoch, leased.applied_seq + 1, problem, '{"verdict": "merge"}');
                    CONTINUE;
                END IF;
                SELECT CASE WHEN bool_and(l.name IS NULL) THEN max(l.seq) END INTO gone_seq
                FROM inturn._planned_commands(served.name, leased.key, leased.applied_seq, leased.epoch, max_commands) l;
                IF gone_seq IS NOT NULL THEN
                    -- Nothing is left to do on it.
                    PERFORM inturn._end_alone(served.name, leased.key, leased.epoch, gone_seq);
                    CONTINUE;
                END IF;
            END IF;
            FOR command IN
                SELECT l.seq, l.name, l.payload, l.created_at
                FROM inturn._next_commands(served.name, leased.key, leased.applied_seq, max_commands) l WHERE NOT settings.merges
                UNION ALL
                SELECT * FROM inturn._planned_commands(served.name, leased.key, leased.applied_seq, leased.epoch, max_commands) l
                WHERE settings.merges AND l.name IS NOT NULL
            LOOP
                size := octet_length(command.payload::text);
                IF octets > 0 AND octets + size > max_octets THEN
                    RETURN;
                END IF;
                octets := octets + size;
                seq := command.seq; name := command.name; payload := command.payload; created_at := command.created_at;
                RETURN NEXT;
            END LOOP;
        END LOOP;
    END LOOP;
END
$$;
COMMENT ON FUNCTION inturn._claim_leases IS 'Internal to claim: claims ready keys of some topics by lease.';
