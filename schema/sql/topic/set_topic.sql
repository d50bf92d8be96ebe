CREATE FUNCTION inturn.set_topic(
    topic text, reason text DEFAULT NULL, target text DEFAULT NULL, max_attempts integer DEFAULT NULL,
    backoff_base interval DEFAULT NULL, backoff_cap interval DEFAULT NULL,
    max_payload_bytes integer DEFAULT NULL, batch_commands integer DEFAULT NULL, on_exhausted text DEFAULT NULL,
    max_ahead bigint DEFAULT NULL, gap_timeout interval DEFAULT NULL, lease interval DEFAULT NULL,
    max_in_flight integer DEFAULT NULL, timeout interval DEFAULT NULL, max_pending bigint DEFAULT NULL,
    retain interval DEFAULT NULL, retain_idempotency interval DEFAULT NULL, forget_idle_after interval DEFAULT NULL,
    json_strings boolean DEFAULT NULL
) RETURNS inturn.operator_action
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- Changes settings of a topic; returns the recorded action. Appliers that run follow within seconds.
--
-- NULL leaves a setting as it is; a gap_timeout, timeout, max_pending, retain, retain_idempotency or forget_idle_after
-- of 0 takes it away. Who numbers the commands cannot be changed. target: only a deployer may name it, and the owner of
-- its function is recorded anew: set the same one again where that has changed (IT013).
-- Locks: the topic's row.
-- Raises 42501 for a target, unless the caller owns the schema or has inturn_admin; IT041 when nothing would change,
-- what _check_topic raises, and what _lock_topic raises.
DECLARE
    was constant inturn.topic := inturn._lock_topic(topic);
    settings inturn.topic := was;
BEGIN
    IF target IS NOT NULL THEN
        PERFORM inturn._require_admin(topic, 'setting its target');
        SELECT o.owner, o.owner_id INTO settings.target_owner, settings.target_owner_id
        FROM inturn._target_owner(topic, target) o;
    END IF;
    settings.target := coalesce(target, was.target);
    settings.max_attempts := coalesce(max_attempts, was.max_attempts);
    settings.backoff_base := coalesce(backoff_base, was.backoff_base);
    settings.backoff_cap := coalesce(backoff_cap, was.backoff_cap);
    settings.max_payload_bytes := coalesce(max_payload_bytes, was.max_payload_bytes);
    settings.batch_commands := coalesce(batch_commands, was.batch_commands);
    settings.on_exhausted := coalesce(on_exhausted, was.on_exhausted);
    settings.max_ahead := coalesce(max_ahead, was.max_ahead);
    settings.gap_timeout := nullif(coalesce(gap_timeout, was.gap_timeout), '0');
    settings.lease := coalesce(lease, was.lease);
    settings.max_in_flight := coalesce(max_in_flight, was.max_in_flight);
    settings.timeout := nullif(coalesce(timeout, was.timeout), '0');
    settings.max_pending := nullif(coalesce(max_pending, was.max_pending), 0);
    settings.retain := nullif(coalesce(retain, was.retain), '0');
    settings.retain_idempotency := nullif(coalesce(retain_idempotency, was.retain_idempotency), '0');
    settings.forget_idle_after := nullif(coalesce(forget_idle_after, was.forget_idle_after), '0');
    settings.json_strings := coalesce(json_strings, was.json_strings);
    IF settings = was THEN
        PERFORM inturn._refuse_action(topic, '', 'has these settings already', 'Nothing was changed.');
    END IF;
    PERFORM inturn._check_topic(settings);
    UPDATE inturn.topic t SET
        (target, max_attempts, backoff_base, backoff_cap, max_payload_bytes, batch_commands, on_exhausted,
         max_ahead, gap_timeout, lease, max_in_flight, timeout, max_pending,
         retain, retain_idempotency, forget_idle_after, target_owner, target_owner_id, json_strings)
        = (settings.target, settings.max_attempts, settings.backoff_base, settings.backoff_cap,
           settings.max_payload_bytes,
           settings.batch_commands, settings.on_exhausted,
           settings.max_ahead, settings.gap_timeout, settings.lease, settings.max_in_flight, settings.timeout,
           settings.max_pending,
           settings.retain, settings.retain_idempotency, settings.forget_idle_after, settings.target_owner,
           settings.target_owner_id, settings.json_strings)
    WHERE t.name = set_topic.topic;
    RETURN inturn._record_action(topic, '', NULL, 'set', reason, to_jsonb(was), to_jsonb(settings));
END
$$;
COMMENT ON FUNCTION inturn.set_topic IS 'Changes settings of a topic.';
