-- Returns what the last pass over a topic's intake saw; of a topic that had none, that nothing is known. Internal to
-- _number_topic. Takes no locks.
--
-- A standby has no unlogged tables: of every topic nothing is known there.
-- What a pass on another server saw means nothing, and neither does what this one cannot have seen yet, as after a
-- restore. Where a server does not tell which it is, every pass is the first.
CREATE FUNCTION inturn._last_arrival_pass(topic text) RETURNS inturn.arrival_pass
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    here constant bigint := inturn._server_id();
    last inturn.arrival_pass;
BEGIN
    IF NOT pg_is_in_recovery() THEN
        SELECT * INTO last FROM inturn.arrival_pass p
        WHERE p.topic = _last_arrival_pass.topic ORDER BY p.pass DESC LIMIT 1;
    END IF;
    IF last.topic IS NULL OR last.cluster IS DISTINCT FROM here
        OR pg_snapshot_xmax(last.seen) > pg_snapshot_xmax(pg_current_snapshot()) THEN
        last := ROW(topic, coalesce(last.pass, 0), NULL, '{}', coalesce(here, 0), NULL, false,
                    NULL, NULL, NULL, NULL, NULL, NULL);
    END IF;
    RETURN last;
END
$$;
COMMENT ON FUNCTION inturn._last_arrival_pass IS 'Internal to the appliers: what the last pass over an intake saw.';
