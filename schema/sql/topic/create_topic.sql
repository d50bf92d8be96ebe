CREATE FUNCTION inturn.create_topic(
    name text, target text DEFAULT 'python', max_attempts integer DEFAULT 5,
    backoff_base interval DEFAULT '1 second', backoff_cap interval DEFAULT '5 minutes',
    max_payload_bytes integer DEFAULT 1048576, batch_commands integer DEFAULT 100, on_exhausted text DEFAULT 'hold',
    numbering text DEFAULT 'assigned', first_seq bigint DEFAULT 1, max_ahead bigint DEFAULT 10000,
    gap_timeout interval DEFAULT NULL, lease interval DEFAULT '30 seconds', max_in_flight integer DEFAULT 100,
    timeout interval DEFAULT NULL, max_pending bigint DEFAULT NULL, retain interval DEFAULT NULL,
    retain_idempotency interval DEFAULT NULL, forget_idle_after interval DEFAULT NULL,
    json_strings boolean DEFAULT false
) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- Creates a topic, and records who did. Returns true, or false when it is there already with the same settings.
--
-- target: 'python'; 'sql:SCHEMA.FUNCTION', a function that takes one inturn.command, or inturn.command[]; or an
-- address, 'http://...'.
-- numbering: 'assigned', in commit order; 'given': callers number the commands of each key from first_seq on;
-- 'arrival': in the order of arrival, without any lock on the key, by the appliers after the commit (see
-- _number_topic). Only a deployer may name a target other than python. The owner of its function is recorded: a
-- function that belongs to somebody else by then is not called (IT013).
-- Locks: none beyond the new row.
-- Raises 42501 for a target other than python, unless the caller owns the schema or has inturn_admin; IT010 when the
-- topic exists with other settings, and what _check_topic raises.
DECLARE
    topic inturn.topic :=
        ROW(name, target, max_attempts, backoff_base, backoff_cap, max_payload_bytes, batch_commands, clock_timestamp(),
            on_exhausted, NULL, NULL, numbering, first_seq, max_ahead, gap_timeout, lease, max_in_flight, timeout,
            max_pending, NULL, false,
            retain, retain_idempotency, forget_idle_after, NULL, NULL, json_strings);
BEGIN
    IF target <> 'python' THEN
        PERFORM inturn._require_admin(name, 'a target but python');
    END IF;
    PERFORM inturn._check_topic(topic);
    SELECT o.owner, o.owner_id INTO topic.target_owner, topic.target_owner_id FROM inturn._target_owner(name, target) o;
    INSERT INTO inturn.topic SELECT topic.* ON CONFLICT DO NOTHING;
    IF FOUND THEN
        PERFORM inturn._record_action(name, '', NULL, 'create', NULL, NULL, to_jsonb(topic));
        RETURN true;
    END IF;
    PERFORM FROM inturn.topic t WHERE t.name = topic.name
        AND to_jsonb(t)
            - '{created_at,paused_at,paused_until,callers,merges,target_owner,target_owner_id}'::text[]
            = to_jsonb(topic)
                - '{created_at,paused_at,paused_until,callers,merges,target_owner,target_owner_id}'::text[];
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'IT010',
            MESSAGE = format('topic %L exists already, with other settings', name),
            HINT = 'Compare with: SELECT * FROM inturn.topic.';
    END IF;
    RETURN false;
END
$$;
COMMENT ON FUNCTION inturn.create_topic IS 'Creates a topic; false when it is there already with the same settings.';
