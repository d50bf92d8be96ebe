-- Moves commands of a topic from the intake to the log, under the next numbers of their keys, and wakes these; returns
-- how many.
-- Internal to _number_topic.
--
-- tids: their rows; one that was updated since has another tid, and stays where it is.
-- What has an idempotency key that the key's log knows is dropped. No append leaves such a row (see _end_repeat).
-- The caller holds the keys' rows in key_sequence, and nobody else moves rows of the topic's intake.
CREATE FUNCTION inturn._append_arrived(topic text, tids tid[]) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_nestloop = off -- but for the probes of an index a key
SET jit = off
AS $$
DECLARE
    numbered bigint;
    woken bigint;
BEGIN
    -- What is deleted is logged, and nothing else: whoever came first has it.
    WITH moved AS (
        DELETE FROM inturn.intake i WHERE i.ctid = ANY (tids) RETURNING i.*
    ), arrived AS MATERIALIZED (
        SELECT m.key, m.id, m.name, m.payload, m.idempotency_key, m.created_at,
               row_number() OVER (PARTITION BY m.key ORDER BY m.id) AS place
        FROM moved m LEFT JOIN LATERAL (
            SELECT true AS there FROM inturn.command_log l
            WHERE m.idempotency_key IS NOT NULL -- or each command would be a probe
              AND l.topic = _append_arrived.topic AND l.key = m.key AND l.idempotency_key = m.idempotency_key
                  LIMIT 1) l ON true
        WHERE l.there IS NULL
    ), stands AS MATERIALIZED (
        -- No number up to applied_seq is looked at: see append.
        SELECT a.key, coalesce(u.epoch, 0) AS epoch, coalesce(u.applied_seq, 0) AS applied_seq,
               coalesce(u.drained, true) AS drained,
               coalesce(l.seq, u.applied_seq, 0) AS last_seq
        FROM (SELECT DISTINCT a.key FROM arrived a) a
        LEFT JOIN LATERAL (
            SELECT u.epoch, u.applied_seq, u.drained FROM inturn.turn u
            WHERE u.topic = _append_arrived.topic AND u.key = a.key ORDER BY u.epoch DESC LIMIT 1) u ON true
        LEFT JOIN LATERAL (
            SELECT l.seq FROM inturn.command_log l
            WHERE l.topic = _append_arrived.topic AND l.key = a.key AND l.seq > coalesce(u.applied_seq, 0)
            ORDER BY l.seq DESC LIMIT 1) l ON true
    ), logged AS (
        INSERT INTO inturn.command_log (topic, key, seq, name, payload, idempotency_key, created_at)
        SELECT _append_arrived.topic, a.key, s.last_seq + a.place, a.name, a.payload, a.idempotency_key, a.created_at
        FROM arrived a JOIN stands s ON s.key = a.key
        RETURNING 1
    ), awake AS (
        -- The first command after the drained ones finds the key idle: see append and _wake_key.
        INSERT INTO inturn.ticket (topic, key, epoch, applied_seq, ready_at)
        SELECT _append_arrived.topic, s.key, s.epoch, s.applied_seq, clock_timestamp()
        FROM stands s WHERE s.drained AND s.last_seq = s.applied_seq
        ON CONFLICT DO NOTHING RETURNING 1
    )
    SELECT (SELECT count(*) FROM logged), (SELECT count(*) FROM awake) INTO numbered, woken;
    IF woken > 1 THEN
        PERFORM inturn._notify_appliers(topic); -- for others to help
    END IF;
    RETURN numbered;
END
$$;
COMMENT ON FUNCTION inturn._append_arrived IS 'Internal to the appliers: moves commands from the intake to the log.';
