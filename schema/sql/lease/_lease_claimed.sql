-- Starts a lease on a key that was claimed just now, as _begin_lease or _try_lease does. Internal to _claim_leases.
--
-- max_octets: leave the key as it is when its first command is longer; NULL: however long that is. fits: whether it was
-- not.
-- leased: NULL when there is nothing to do on the key, or it was put off. max_commands: how many to read.
-- Locks the key's ticket again: the claim may have been made under a savepoint, so that nothing tells whose lock is
-- there.
-- Locks and raises what _begin_lease does. Raises IT014 when the topic is granted to other appliers only; IT030 when
-- the key is not ready any more, or another session has it.
CREATE FUNCTION inturn._lease_claimed(
    topic text, key text, epoch bigint, lease interval, applier text, one_by_one boolean, max_octets bigint,
    OUT fits boolean, OUT leased inturn.key_cursor, OUT max_commands integer
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    settings inturn.topic;
    standing bigint;
BEGIN
    IF EXISTS (SELECT FROM inturn.topic_grant g WHERE g.topic = _lease_claimed.topic AND g.role = 'applier') THEN
        PERFORM inturn._require_grant(topic, 'applier');
    END IF;
    SELECT * INTO settings FROM inturn.topic t WHERE t.name = _lease_claimed.topic;
    SELECT t.applied_seq INTO standing FROM inturn.ticket t
    WHERE t.topic = _lease_claimed.topic AND t.key = _lease_claimed.key AND t.epoch = _lease_claimed.epoch - 1
      AND t.ready_at <= clock_timestamp() FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'IT030',
            MESSAGE = format('turn %s of key %L of topic %L was fenced off: its claim is not held any more', epoch,
                             key, topic);
    END IF;
    fits := max_octets IS NULL OR (
        -- As it is stored, which is seen at once.
        SELECT CASE WHEN pg_column_size(l.payload) > greatest(max_octets, 65536) THEN true
                    ELSE octet_length(l.payload::text) > max_octets END
        FROM inturn.command_log l
        WHERE l.topic = _lease_claimed.topic AND l.key = _lease_claimed.key AND l.seq = standing + 1) IS NOT TRUE;
    IF NOT fits THEN
        RETURN;
    END IF;
    IF one_by_one THEN
        leased := inturn._try_lease(settings, key, standing, epoch, lease, applier);
    ELSE
        leased := inturn._begin_lease(settings, key, standing, epoch, lease, applier);
    END IF;
    max_commands := CASE WHEN leased.attempts > 0 OR leased.lost > 0 THEN 1 ELSE settings.batch_commands END;
END
$$;
COMMENT ON FUNCTION inturn._lease_claimed IS
    'Internal to the claims by lease: starts a lease on a key that was claimed just now.';
