-- Puts a command into the intake of a topic with numbering arrival that append has not found plain. Internal to
-- _begin_append.
--
-- Returns NULL: an applier will number it. Where its idempotency key has a number already, appends nothing and returns
-- that.
-- Takes no locks, except that two appends with the same idempotency key wait for each other.
-- Raises IT008, IT009; 40001 at REPEATABLE READ and SERIALIZABLE for an idempotency key that came after the snapshot.
CREATE FUNCTION inturn._append_arrival(
    topic text, key text, name text, payload jsonb, idempotency_key text, max_pending bigint
) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    numbered bigint;
    new_id bigint;
BEGIN
    IF idempotency_key IS NOT NULL THEN
        numbered := inturn._number_of(topic, key, name, payload, idempotency_key);
        IF numbered IS NOT NULL THEN
            RETURN numbered;
        END IF;
    END IF;
    INSERT INTO inturn.intake AS i (topic, key, name, payload, idempotency_key)
    VALUES (_append_arrival.topic, _append_arrival.key, _append_arrival.name, coalesce(_append_arrival.payload, '{}'),
            _append_arrival.idempotency_key)
    ON CONFLICT DO NOTHING RETURNING i.id INTO new_id;
    IF idempotency_key IS NOT NULL THEN
        numbered := inturn._end_repeat(topic, key, name, payload, idempotency_key, new_id);
        IF numbered IS NOT NULL THEN
            RETURN numbered;
        END IF;
    END IF;
    IF new_id IS NOT NULL THEN
        PERFORM inturn._refuse_pending(topic, key, NULL, max_pending);
    END IF;
    PERFORM inturn._notify_appliers(topic);
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION inturn._append_arrival IS 'Internal to append: puts a command that is not plain into the intake.';
