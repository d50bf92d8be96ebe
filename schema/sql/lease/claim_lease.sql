-- Claims ready keys of some topics by lease, in the order of the topics, and returns their next commands in order.
--
-- For work outside the database: commit at once, do a key's commands one after the other, report each with advance (or
-- fail), and release the key at the end; renew while a command takes long. Whoever has the key when the lease is over
-- is fenced off by the next epoch, which any applier's claim takes.
-- lease: NULL for each topic's own. applier: who asks, as in turn; NULL for this session. Neither has a default: no call
-- with fewer parameters can mean both this claim and the other.
-- A key comes with at most the topic's batch_commands; one whose next command has failed before, or with which an applier
-- was lost, with that alone. Of the latter an applier has one at a time (see _begin_lease).
-- All payloads together have at most _max_claim_octets, but the first command comes however long it is: from where they
-- would have more, a key comes with fewer commands, or is not claimed and stays ready.
-- Locks the keys' tickets, skipping locked ones; what _begin_lease_pass locks. Raises IT001, IT031 outside READ COMMITTED,
-- 22004 without topics, 22023 for a max_keys or a lease that cannot be.
CREATE FUNCTION inturn.claim(topics text[], max_keys integer, lease interval, applier text)
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
    octets bigint := 0; size integer; command record;
BEGIN
    PERFORM inturn._require_read_committed();
    IF (max_keys >= 0) IS NOT TRUE THEN
        RAISE EXCEPTION USING ERRCODE = '22023',
            MESSAGE = format('max_keys is %s; 0 or more are allowed', coalesce(max_keys::text, 'NULL')),
            HINT = 'Give how many keys the applier can work on now.';
    END IF;
    IF topics IS NULL THEN
        RAISE null_value_not_allowed USING MESSAGE = 'topics is NULL', HINT = 'Give the topics that the applier serves.';
    ELSIF topics = '{}' OR max_keys = 0 THEN
        RETURN;
    END IF;
    PERFORM inturn._refuse_topic(t.name) FROM unnest(topics) t (name)
    WHERE NOT EXISTS (SELECT FROM inturn.topic s WHERE s.name = t.name);
    pass := inturn._begin_lease_pass(topics);
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
            leased := inturn._begin_lease(settings, claimed.key, claimed.applied_seq, claimed.epoch,
                                         claim.lease, coalesce(claim.applier, 'sql:' || pg_backend_pid()));
            CONTINUE WHEN leased.key IS NULL;
            topic := leased.topic; key := leased.key; epoch := leased.epoch;
            attempt := leased.attempts + 1; lease_until := leased.lease_until;
            FOR command IN
                SELECT l.seq, l.name, l.payload, l.created_at
                FROM inturn._next_commands(served.name, leased.key, leased.applied_seq,
                                          CASE WHEN leased.attempts > 0 OR leased.lost > 0 THEN 1 ELSE settings.batch_commands END) l
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
COMMENT ON FUNCTION inturn.claim(text[], integer, interval, text) IS 'Claims ready keys by lease, for work outside the database, and returns their next commands.';
