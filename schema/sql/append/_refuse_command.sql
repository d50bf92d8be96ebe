-- Refuses a command that cannot be appended; returns when nothing is wrong with it. Internal to append. Takes no locks.
--
-- Raises IT001 unknown topic, IT002 key, IT003 payload (too long, or encoded twice), IT004 command name, IT005
-- idempotency key.
CREATE FUNCTION inturn._refuse_command(topic text, key text, name text, payload jsonb,
                                       idempotency_key text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    max_bytes integer; json_strings boolean;
BEGIN
    SELECT t.max_payload_bytes, t.json_strings INTO max_bytes, json_strings
    FROM inturn.topic t WHERE t.name = _refuse_command.topic;
    IF NOT FOUND THEN
        PERFORM inturn._refuse_topic(topic);
    ELSIF coalesce(octet_length(key), 0) NOT BETWEEN 1 AND 512 THEN
        RAISE EXCEPTION USING ERRCODE = 'IT002',
            MESSAGE = format('key is %s', CASE WHEN key IS NULL THEN 'NULL' WHEN key = '' THEN 'empty'
                             ELSE format('%s octets long (it begins with %L)', octet_length(key), left(key, 40)) END),
            HINT = 'A key is 1 to 512 octets of text, compared byte by byte.';
    ELSIF coalesce(octet_length(name), 0) NOT BETWEEN 1 AND 128 THEN
        RAISE EXCEPTION USING ERRCODE = 'IT004',
            MESSAGE = format('command name for key %L is %s', key,
                             CASE WHEN name IS NULL THEN 'NULL' WHEN name = '' THEN 'empty'
                             ELSE format('%s octets long', octet_length(name)) END),
            HINT = 'A command name is 1 to 128 octets of text.';
    ELSIF octet_length(payload::text) > max_bytes THEN
        RAISE EXCEPTION USING ERRCODE = 'IT003',
            MESSAGE = format('payload of command %L for key %L is %s bytes, over the %s that topic %L allows',
                             name, key, octet_length(payload::text), max_bytes, topic),
            HINT = 'Store the large part elsewhere and append a reference to it, or raise the topic''s '
                   'max_payload_bytes.';
    ELSIF jsonb_typeof(payload) = 'string' AND NOT json_strings AND inturn._is_encoded_twice(payload) THEN
        RAISE EXCEPTION USING ERRCODE = 'IT003',
            MESSAGE = format('payload of command %L for key %L is a JSON string that holds an object or array: it was '
                             'encoded twice', name, key),
            HINT = 'Give the value itself, in Python a dict or list and not what json.dumps makes of it. If the text '
                   'is meant, put it into an object, or set the topic''s json_strings.';
    ELSIF octet_length(idempotency_key) NOT BETWEEN 1 AND 512 THEN
        RAISE EXCEPTION USING ERRCODE = 'IT005',
            MESSAGE = format('idempotency key of command %L for key %L is %s octets long', name, key,
                             octet_length(idempotency_key)),
            HINT = 'An idempotency key is NULL or 1 to 512 octets of text.';
    ELSIF starts_with(idempotency_key, 'inturn.') THEN
        RAISE EXCEPTION USING ERRCODE = 'IT005',
            MESSAGE = format('idempotency key %L of command %L for key %L begins with inturn.',
                             left(idempotency_key, 100), name, key),
            HINT = 'These are for inturn itself, which knows a replay by its idempotency key. Give it another '
                   'beginning.';
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._refuse_command IS 'Internal to append: refuses a command that cannot be appended.';
