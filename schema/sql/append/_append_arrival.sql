-- Puts a command into the intake of a topic with numbering arrival. Internal to append.
--
-- Returns NULL: an applier will number it. Where its idempotency key has a number already, appends nothing and returns
-- that.
-- Takes no locks, except that two appends with the same idempotency key wait for each other.
-- Raises IT008, IT009; 40001 at REPEATABLE READ and SERIALIZABLE for an idempotency key that came after the snapshot.
CREATE FUNCTION inturn._append_arrival(
    topic text, key text, name text, payload jsonb, idempotency_key text, max_pending bigint
) RETURNS bigint
LANGUAGE plpgsql VOLATILE
-- Qualified, not pinned: a microsecond of every append.
AS $$
DECLARE
    numbered bigint;
    new_id bigint;
    asleep boolean;
BEGIN
    -- ON CONFLICT costs a tenth of an append: only where something can be in the way.
    IF idempotency_key IS NULL THEN
        INSERT INTO inturn.intake (topic, key, name, payload)
        VALUES (_append_arrival.topic, _append_arrival.key, _append_arrival.name,
                coalesce(_append_arrival.payload, '{}'))
        RETURNING EXISTS (SELECT FROM inturn.listener l
                          WHERE l.topic OPERATOR(pg_catalog.=) ANY (ARRAY[_append_arrival.topic, ''])
                            AND l.asleep_until OPERATOR(pg_catalog.>) pg_catalog.clock_timestamp()) INTO asleep;
    ELSE
        numbered := inturn._number_of(topic, key, name, payload, idempotency_key);
        IF numbered IS NOT NULL THEN
            RETURN numbered;
        END IF;
        INSERT INTO inturn.intake AS i (topic, key, name, payload, idempotency_key)
        VALUES (_append_arrival.topic, _append_arrival.key, _append_arrival.name,
                coalesce(_append_arrival.payload, '{}'),
                _append_arrival.idempotency_key)
        ON CONFLICT DO NOTHING RETURNING i.id INTO new_id;
        numbered := inturn._end_repeat(topic, key, name, payload, idempotency_key, new_id);
        IF numbered IS NOT NULL THEN
            RETURN numbered;
        END IF;
        asleep := true; -- it looks itself
    END IF;
    IF max_pending IS NOT NULL AND (idempotency_key IS NULL OR new_id IS NOT NULL) THEN
        PERFORM inturn._refuse_pending(topic, key, NULL, max_pending);
    END IF;
    IF asleep THEN
        PERFORM inturn._notify_appliers(topic);
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION inturn._append_arrival IS 'Internal to append: puts a command into the intake.';
