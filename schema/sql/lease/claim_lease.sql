CREATE FUNCTION inturn.claim(topics text[], max_keys integer, lease interval, applier text)
RETURNS TABLE (
    topic text, key text, epoch bigint, attempt integer, lease_until timestamptz,
    seq bigint, name text, payload jsonb, created_at timestamptz
)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- Claims ready keys of some topics by lease, in the order of the topics, and returns their next commands in order.
--
-- For work outside the database: commit at once, do a key's commands one after the other, report each with advance (or
-- fail), and release the key at the end; renew while a command takes long. An applier that still has the key when the
-- lease is over is fenced off by the next epoch, which the next claim takes.
-- lease: NULL for each topic's own. applier: who asks, as in turn; NULL for this session. Neither has a default: no
-- call with fewer parameters can mean both this claim and the other.
-- A key comes with at most the topic's batch_commands; one whose next command has failed before, or with which an
-- applier was lost, with that alone. Of the latter an applier has one at a time (see _begin_lease).
-- All payloads together have at most _max_claim_octets, but the first command comes however long it is: from where they
-- would have more, a key comes with fewer commands, or is not claimed and stays ready.
-- Where the topic has merge rules, of commands that were merged only the last one comes, with what they became: a key's
-- numbers may jump then, and advance takes them so.
-- A key that itself makes its claim fail is put off (see _put_off): the others are claimed.
-- A topic whose commands a function merges that belongs to somebody else than when its rule was set is left out, with a
-- warning; where it is the only one, IT013 is raised.
-- Runs as the applier; what claims, leases and reads, each for itself, as the schema's owner.
-- Locks the keys' tickets, skipping locked ones; what _begin_saved_pass locks. Raises IT001, IT031 outside READ
-- COMMITTED, 22004 without topics, 22023 for a max_keys or a lease that cannot be, and IT013: see above. Then nothing
-- was claimed.
#variable_conflict use_variable
DECLARE
    who constant text := coalesce(applier, 'sql:' || pg_backend_pid());
BEGIN
    PERFORM inturn._require_read_committed();
    IF (max_keys >= 0) IS NOT TRUE THEN
        RAISE EXCEPTION USING ERRCODE = '22023',
            MESSAGE = format('max_keys is %s; 0 or more are allowed', coalesce(max_keys::text, 'NULL')),
            HINT = 'Give how many keys the applier can work on now.';
    END IF;
    IF topics IS NULL THEN
        RAISE null_value_not_allowed
            USING MESSAGE = 'topics is NULL', HINT = 'Give the topics that the applier serves.';
    ELSIF topics = '{}' OR max_keys = 0 THEN
        RETURN;
    END IF;
    PERFORM inturn._check_lease(topics, lease);
    BEGIN
        RETURN QUERY SELECT * FROM inturn._claim_leases(topics, max_keys, lease, who, false);
    EXCEPTION WHEN OTHERS THEN
        IF SQLSTATE IN ('53100', '55P03', 'IT013') THEN
            RAISE; -- no key's fault: see _try_lease, _require_merges
        END IF;
        -- None of its rows has been returned: a function in FROM returns them all or none.
        RETURN QUERY SELECT * FROM inturn._claim_leases(topics, max_keys, lease, who, true);
    END;
END
$$;
COMMENT ON FUNCTION inturn.claim(text[], integer, interval, text) IS
    'Claims ready keys by lease, for work outside the database, and returns their next commands.';
