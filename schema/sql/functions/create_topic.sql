-- Creates a topic. Returns true, or false when it is there already with the same settings.
--
-- target: 'python', or 'sql:SCHEMA.FUNCTION', a function that takes one inturn.command.
-- Locks: none beyond the new row.
-- Raises IT010 when the topic exists with other settings, IT011 for a setting out of range, IT012 for a target
-- that cannot be called.
CREATE FUNCTION inturn.create_topic(
    name text, target text DEFAULT 'python', max_attempts integer DEFAULT 5,
    backoff_base interval DEFAULT '1 second', backoff_cap interval DEFAULT '5 minutes',
    max_payload_bytes integer DEFAULT 1048576, batch_commands integer DEFAULT 100
) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    violated text;
BEGIN
    IF target LIKE 'sql:%' THEN
        PERFORM inturn.target_function(name, target);
    END IF;
    INSERT INTO inturn.topic (name, target, max_attempts, backoff_base, backoff_cap, max_payload_bytes, batch_commands)
    VALUES (name, target, max_attempts, backoff_base, backoff_cap, max_payload_bytes, batch_commands)
    ON CONFLICT DO NOTHING;
    IF FOUND THEN
        RETURN true;
    END IF;
    PERFORM FROM inturn.topic t
    WHERE (t.name, t.target, t.max_attempts, t.backoff_base, t.backoff_cap, t.max_payload_bytes, t.batch_commands)
        = (create_topic.name, create_topic.target, create_topic.max_attempts, create_topic.backoff_base,
           create_topic.backoff_cap, create_topic.max_payload_bytes, create_topic.batch_commands);
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'IT010',
            MESSAGE = format('topic %L exists already, with other settings', name),
            HINT = 'Compare with: SELECT * FROM inturn.topic.';
    END IF;
    RETURN false;
EXCEPTION WHEN check_violation OR not_null_violation THEN
    GET STACKED DIAGNOSTICS violated = MESSAGE_TEXT;
    RAISE EXCEPTION USING ERRCODE = 'IT011',
        MESSAGE = format('topic %s cannot be created: %s', coalesce(quote_literal(left(name, 200)), 'NULL'), violated),
        HINT = 'name: 1 to 128 octets; target: python or sql:SCHEMA.FUNCTION; max_attempts: 1 or more; '
               'backoff_base: over 0, up to backoff_cap; backoff_cap: up to 7 days; '
               'max_payload_bytes: 2 to 67108864; batch_commands: 1 to 10000.';
END
$$;
COMMENT ON FUNCTION inturn.create_topic IS 'Creates a topic; false when it is there already with the same settings.';
