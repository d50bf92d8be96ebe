CREATE FUNCTION inturn.wait(
    topic text, key text, seq bigint DEFAULT NULL, timeout interval DEFAULT '30 seconds',
    idempotency_key text DEFAULT NULL,
    OUT applied_seq bigint, OUT skipped boolean
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- Waits until a key has been applied, or skipped, up to a number; returns where it stands then, and whether command
-- seq itself was skipped: then it never took effect.
--
-- seq: NULL for the command with that idempotency key; without one, for everything that is committed on the key now.
-- timeout: the longest wait; NULL: no limit.
-- A function cannot LISTEN. So this one looks again after an eighth of the time that it has waited, 2 ms at least and a
-- second at most: a few probes of indexes. The wait ends that much later, and it costs nothing to anybody who moves the
-- key. Its statement keeps a snapshot meanwhile, as every statement does; the inturn package waits without one, and is
-- notified.
-- Takes no locks, and writes nothing: it works on a standby too.
-- Raises IT066 when the key is held, as soon as it is; IT065 when the time is over; IT031 in a transaction that has
-- written, whose commands cannot be applied before its commit, and outside READ COMMITTED; 22023 for a timeout below 0;
-- and what wait_state does.
DECLARE
    began_at constant timestamptz := clock_timestamp();
    waited double precision := 0;
    longest constant double precision := extract(epoch FROM timeout);
    mark bigint;
    stands record;
BEGIN
    IF timeout < '0' THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('timeout is %s; 0 or more is allowed', timeout);
    END IF;
    PERFORM inturn._refuse_wait();
    LOOP
        SELECT * INTO stands FROM inturn.wait_state(topic, key, seq, idempotency_key, mark);
        seq := stands.seq; mark := stands.mark;
        IF stands.outcome = 'applied' THEN
            applied_seq := stands.applied_seq; skipped := stands.skipped;
            RETURN;
        ELSIF stands.outcome = 'held' THEN
            RAISE EXCEPTION USING ERRCODE = 'IT066', MESSAGE = stands.says,
                HINT = 'An operator finds out why by: inturn why KEY.';
        ELSIF waited >= longest THEN
            RAISE EXCEPTION USING ERRCODE = 'IT065', MESSAGE = stands.says,
                HINT = 'Wait on, or ask an operator: inturn why KEY.';
        END IF;
        PERFORM pg_sleep(least(greatest(waited / 8, 0.002), 1, longest - waited));
        waited := extract(epoch FROM clock_timestamp() - began_at);
    END LOOP;
END
$$;
COMMENT ON FUNCTION inturn.wait IS 'Waits until a key has been applied, or skipped, up to a number.';
