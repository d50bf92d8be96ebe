-- Starts a lease on a key that this transaction has claimed, and returns its row; NULL when there is nothing to do on
-- it.
-- Internal to the claims by lease.
--
-- A lease that ran out on the key: see _lose_lease. Of the keys that were lost so, a process works on one at a time, or
-- on a few where there are many (see _find_company): another one is put off for a moment, up to 100 ms. So whichever of
-- them loses the process again alone is the one that did it. They do not come back all at once, or only one of them
-- would be taken in each 100 ms; nor each at a time of its own, since their process looks as often while one of them
-- takes long.
-- Without a command to apply the claim is an empty turn, and ends here: not by finish, which does not know a claim that
-- a client has made under a savepoint.
-- Locks what _requeue and _lock_process lock. Raises what _lease_end raises.
CREATE FUNCTION inturn._begin_lease(
    settings inturn.topic, key text, applied_seq bigint, epoch bigint, lease interval, applier text
) RETURNS inturn.key_cursor
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    was inturn.key_cursor;
    leased inturn.key_cursor;
    until constant timestamptz := inturn._lease_end(settings, lease);
BEGIN
    SELECT * INTO was FROM inturn._find_cursor(settings.name, _begin_lease.key) c;
    leased := was;
    leased.claimed_by := NULL; leased.claimed_at := NULL; leased.lease_until := NULL;
    leased.paused_at := NULL; leased.paused_until := NULL;
    IF NOT EXISTS (SELECT FROM inturn._next_commands(settings.name, _begin_lease.key, _begin_lease.applied_seq, 1)) THEN
        leased.attempts := 0; leased.lost := 0; leased.last_error := NULL; leased.failed_at := NULL;
        leased.empty_turns := was.empty_turns + 1;
        PERFORM inturn._requeue(was, leased);
        RETURN NULL;
    END IF;
    IF was.claimed_by IS NOT NULL THEN
        IF inturn._lose_lease(was, NULL) <> 'lost' THEN
            RETURN NULL;
        END IF;
        SELECT * INTO was FROM inturn._find_cursor(settings.name, _begin_lease.key) c;
        leased := was;
    END IF;
    IF was.lost > 0 THEN
        PERFORM inturn._lock_process(applier);
        leased.lost := inturn._find_company(was, applier);
        IF leased.lost IS NULL THEN
            leased.lost := was.lost;
            leased.ready_at := inturn._next_ready_at(
                leased, date_bin('10 ms', clock_timestamp(), 'epoch') + ceil(random() * 10) * interval '10 ms');
            PERFORM inturn._save_key(was, leased);
            RETURN NULL;
        END IF;
    END IF;
    leased.epoch := _begin_lease.epoch;
    leased.claimed_by := applier; leased.claimed_at := clock_timestamp(); leased.lease_until := until;
    -- Its empty_turns stay until something of it is recorded: see _put_off.
    leased.waiting_at := NULL;
    leased.ready_at := inturn._next_ready_at(leased, until);
    PERFORM inturn._save_key(was, leased);
    RETURN leased;
END
$$;
COMMENT ON FUNCTION inturn._begin_lease IS 'Internal to claim: starts a lease on a key.';
