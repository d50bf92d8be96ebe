-- Appends a row that was inserted into the view outbox, and puts its seq into the row. Trigger function.
--
-- Locks and raises what append does.
CREATE FUNCTION inturn._append_from_outbox() RETURNS trigger
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    NEW.seq := inturn.append(NEW.topic, NEW.key, NEW.name, NEW.payload, NEW.idempotency_key, NEW.seq);
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION inturn._append_from_outbox IS 'Trigger of the view outbox: appends the inserted row.';
