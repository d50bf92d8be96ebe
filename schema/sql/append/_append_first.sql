-- Appends the first command to a new key where the topic has forgotten keys, or may have since the caller's snapshot,
-- and returns its number: see _begin_keys. Internal to append.
--
-- The caller has just inserted the key's row in key_sequence. Takes no further locks. Raises what _begin_keys raises.
CREATE FUNCTION inturn._append_first(topic text, key text, name text, payload jsonb, idempotency_key text)
RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    stands record;
BEGIN
    SELECT * INTO stands FROM inturn._begin_keys(topic, ARRAY[key]);
    INSERT INTO inturn.command_log (topic, key, seq, name, payload, idempotency_key)
    VALUES (_append_first.topic, _append_first.key, stands.applied_seq + 1, _append_first.name,
            coalesce(_append_first.payload, '{}'), _append_first.idempotency_key);
    PERFORM inturn._wake_key(topic, key, stands.epoch, stands.applied_seq);
    RETURN stands.applied_seq + 1;
END
$$;
COMMENT ON FUNCTION inturn._append_first IS
    'Internal to append: appends the first command to a new key where the topic has forgotten some.';
