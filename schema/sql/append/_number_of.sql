-- Returns the number that a command with this idempotency key has in the log; NULL when it has none. Internal to
-- _append_arrival. Takes no locks. Raises IT008 when that command has other content.
CREATE FUNCTION inturn._number_of(topic text, key text, name text, payload jsonb, idempotency_key text) RETURNS bigint
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    numbered bigint;
BEGIN
    SELECT l.seq INTO numbered FROM inturn.command_log l
    WHERE l.topic = _number_of.topic AND l.key = _number_of.key AND l.idempotency_key = _number_of.idempotency_key;
    IF FOUND THEN
        PERFORM inturn._refuse_reuse(topic, key, numbered, name, payload, idempotency_key);
    END IF;
    RETURN numbered;
END
$$;
COMMENT ON FUNCTION inturn._number_of IS 'Internal to append: the number of the command that has an idempotency key.';
