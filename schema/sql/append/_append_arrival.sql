-- Puts a command into the intake of a topic with numbering arrival. Internal to append.
--
-- Returns 0: an applier will number it. Where its idempotency key has a number already, appends nothing and returns that.
-- Takes no locks, but that two appends with the same idempotency key wait for each other. What this one misses, because an
-- applier moves it to the log at this moment, _append_arrived drops.
-- Raises IT002 and IT005; 40001 at REPEATABLE READ and SERIALIZABLE for an idempotency key that came after the snapshot.
CREATE FUNCTION inturn._append_arrival(topic text, key text, name text, payload jsonb, idempotency_key text) RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    asleep boolean;
    numbered bigint;
BEGIN
    IF octet_length(key) BETWEEN 1 AND 512 IS NOT TRUE OR idempotency_key IS NOT NULL THEN
        PERFORM inturn._refuse_command(topic, key, name, payload, idempotency_key);
        SELECT l.seq INTO numbered FROM inturn.command_log l
        WHERE l.topic = _append_arrival.topic AND l.key = _append_arrival.key AND l.idempotency_key = _append_arrival.idempotency_key;
        IF FOUND THEN
            RETURN numbered;
        END IF;
    END IF;
    INSERT INTO inturn.intake (topic, key, name, payload, idempotency_key)
    VALUES (_append_arrival.topic, _append_arrival.key, _append_arrival.name, coalesce(_append_arrival.payload, '{}'),
            _append_arrival.idempotency_key)
    ON CONFLICT DO NOTHING
    RETURNING EXISTS (SELECT FROM inturn.listener l
                      WHERE l.topic IN (_append_arrival.topic, '') AND l.asleep_until > clock_timestamp()) INTO asleep;
    IF asleep THEN
        PERFORM inturn._notify_appliers(topic);
    END IF;
    RETURN 0;
END
$$;
COMMENT ON FUNCTION inturn._append_arrival IS 'Internal to append: puts a command into the intake.';
