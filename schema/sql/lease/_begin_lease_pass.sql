-- Begins a pass over topics that are claimed by lease, where the last one by whatever client left off: see _begin_pass.
-- Internal to claim by lease.
--
-- Locks the row of these topics in lease_pass once a second, unless another client has it: by the advisory lock of its hash
-- before it is there, for an INSERT would wait for another one. And what _begin_pass locks.
CREATE FUNCTION inturn._begin_lease_pass(topics text[]) RETURNS inturn._pass
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    hash constant bigint := hashtextextended(topics::text, 0);
    last inturn._pass;
    last_saved_at timestamptz;
    fresh inturn._pass;
BEGIN
    SELECT (p.pass).*, p.saved_at INTO last.found, last.hands, last.due, last.looked_at, last.safe_at, last.hint_at, last.next_at,
        last.next_xid, last.whole_at, last.starts, last_saved_at
    FROM inturn.lease_pass p WHERE p.topics_hash = hash;
    fresh := inturn._begin_pass(topics, last);
    IF last_saved_at IS NULL THEN
        IF pg_try_advisory_xact_lock(hash) THEN
            INSERT INTO inturn.lease_pass (topics_hash, pass) VALUES (hash, fresh) ON CONFLICT DO NOTHING;
        END IF;
    ELSIF last_saved_at NOT BETWEEN clock_timestamp() - interval '1 s' AND clock_timestamp() THEN
        PERFORM FROM inturn.lease_pass p WHERE p.topics_hash = hash FOR UPDATE SKIP LOCKED;
        IF FOUND THEN
            UPDATE inturn.lease_pass p SET pass = fresh, saved_at = clock_timestamp() WHERE p.topics_hash = hash;
        END IF;
    END IF;
    RETURN fresh;
END
$$;
COMMENT ON FUNCTION inturn._begin_lease_pass IS 'Internal to claim by lease: begins a pass where the last one left off.';
