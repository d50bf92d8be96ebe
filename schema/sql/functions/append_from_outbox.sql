-- Appends a row that was inserted into the view outbox, and puts its seq into the row. Trigger function.
--
-- Locks and raises what append does, and IT007 when the row brings its own seq.
CREATE FUNCTION inturn.append_from_outbox() RETURNS trigger
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NEW.seq IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'IT007',
            MESSAGE = format('seq %s was given for key %L of topic %L', NEW.seq, NEW.key, NEW.topic),
            HINT = 'Leave seq out: the append assigns it. RETURNING seq gives it back.';
    END IF;
    NEW.seq := inturn.append(NEW.topic, NEW.key, NEW.name, NEW.payload, NEW.idempotency_key);
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION inturn.append_from_outbox IS 'Trigger of the view outbox: appends the inserted row.';
