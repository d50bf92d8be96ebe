-- Refuses settings of a topic that are out of range. Internal to create_topic and set_topic. Takes no locks.
--
-- Raises IT011 for the first setting that is, IT012 for a target that cannot be called.
CREATE FUNCTION inturn._check_topic(topic inturn.topic) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    problem constant text := CASE
        WHEN topic.name IS NULL THEN 'its name is NULL'
        WHEN octet_length(topic.name) NOT BETWEEN 1 AND 128
            THEN format('its name has %s octets; 1 to 128 are allowed', octet_length(topic.name))
        WHEN NOT EXISTS (SELECT FROM inturn._kind_of(topic.target))
            THEN format('target is %s; %s are allowed',
                        coalesce(quote_literal(regexp_replace(topic.target, '//.*@', '//...@')), 'NULL'),
                        (SELECT string_agg(k.written, ', ') FROM inturn._target_kinds() k))
        WHEN inturn._address_problem(topic.target) IS NOT NULL THEN inturn._address_problem(topic.target)
        WHEN (topic.max_attempts BETWEEN 1 AND 1000000) IS NOT TRUE
            THEN format('max_attempts is %s; 1 to 1000000 are allowed', coalesce(topic.max_attempts::text, 'NULL'))
        WHEN (topic.backoff_base > '0') IS NOT TRUE
            THEN format('backoff_base is %s; it must be over 0', coalesce(topic.backoff_base::text, 'NULL'))
        WHEN (topic.backoff_cap BETWEEN topic.backoff_base AND '7 days') IS NOT TRUE
            THEN format('backoff_cap is %s; from backoff_base (%s) to 7 days are allowed',
                        coalesce(topic.backoff_cap::text, 'NULL'), topic.backoff_base)
        WHEN (topic.max_payload_bytes BETWEEN 1024 AND 67108864) IS NOT TRUE
            THEN format('max_payload_bytes is %s; 1024 to 67108864 are allowed',
                        coalesce(topic.max_payload_bytes::text, 'NULL'))
        WHEN (topic.batch_commands BETWEEN 1 AND 10000) IS NOT TRUE
            THEN format('batch_commands is %s; 1 to 10000 are allowed', coalesce(topic.batch_commands::text, 'NULL'))
        WHEN (topic.on_exhausted IN ('hold', 'skip', 'cancel-rest')) IS NOT TRUE
            THEN format('on_exhausted is %s; hold, skip or cancel-rest are allowed',
                        coalesce(quote_literal(topic.on_exhausted), 'NULL'))
        WHEN (topic.numbering IN ('assigned', 'given', 'arrival')) IS NOT TRUE
            THEN format('numbering is %s; assigned, given or arrival are allowed',
                        coalesce(quote_literal(topic.numbering), 'NULL'))
        WHEN (topic.first_seq BETWEEN 0 AND 1000000000000000000) IS NOT TRUE
             OR topic.numbering <> 'given' AND topic.first_seq <> 1
            THEN format('first_seq is %s; with numbering given 0 to 10^18 are allowed, otherwise 1',
                        coalesce(topic.first_seq::text, 'NULL'))
        WHEN (topic.max_ahead BETWEEN 1 AND 1000000000) IS NOT TRUE
            THEN format('max_ahead is %s; 1 to 1000000000 are allowed', coalesce(topic.max_ahead::text, 'NULL'))
        WHEN topic.gap_timeout NOT BETWEEN '1 us' AND '365 days'
            THEN format('gap_timeout is %s; up to 365 days are allowed, or NULL', topic.gap_timeout)
        WHEN (topic.lease BETWEEN '10 ms' AND '1 day') IS NOT TRUE
            THEN format('lease is %s; 10 ms to 1 day are allowed', coalesce(topic.lease::text, 'NULL'))
        WHEN topic.timeout NOT BETWEEN '1 ms' AND '1 day'
            THEN format('timeout is %s; 1 ms to 1 day are allowed, or NULL', topic.timeout)
        WHEN topic.max_pending NOT BETWEEN 1 AND 1000000000
            THEN format('max_pending is %s; 1 to 1000000000 are allowed, or NULL', topic.max_pending)
        WHEN topic.max_pending IS NOT NULL AND topic.numbering = 'given'
            THEN format('max_pending is %s, and its callers number: there max_ahead bounds what is pending',
                        topic.max_pending)
        WHEN (topic.max_in_flight BETWEEN 1 AND 10000) IS NOT TRUE
            THEN format('max_in_flight is %s; 1 to 10000 are allowed', coalesce(topic.max_in_flight::text, 'NULL'))
        WHEN topic.json_strings IS NULL THEN 'json_strings is NULL; true and false are allowed'
        WHEN topic.retain <= '0' THEN format('retain is %s; it must be over 0, or NULL', topic.retain)
        WHEN topic.retain_idempotency <= '0'
            THEN format('retain_idempotency is %s; it must be over 0, or NULL', topic.retain_idempotency)
        WHEN topic.retain IS NULL AND num_nonnulls(topic.retain_idempotency, topic.forget_idle_after) > 0
            THEN 'it has a retain_idempotency or a forget_idle_after, and no retain'
        WHEN topic.forget_idle_after < greatest(topic.retain, topic.retain_idempotency)
            THEN format('forget_idle_after is %s; it must not be shorter than what its commands are kept for, %s',
                        topic.forget_idle_after, greatest(topic.retain, topic.retain_idempotency))
        WHEN topic.forget_idle_after IS NOT NULL AND topic.numbering = 'given'
            THEN 'it has a forget_idle_after, and a key whose numbers its callers give has to know where it stands'
        END;
BEGIN
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'IT011',
            MESSAGE = format('topic %s is refused: %s', coalesce(quote_literal(left(topic.name, 40)), 'NULL'), problem),
            HINT = 'Give another value, or leave the setting out.';
    ELSIF inturn._function_name(topic.target) IS NOT NULL THEN
        PERFORM inturn._target_function(topic.name, topic.target);
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._check_topic IS
    'Internal to create_topic and set_topic: refuses settings that are out of range.';
