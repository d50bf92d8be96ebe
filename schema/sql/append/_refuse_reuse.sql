-- Refuses an idempotency key that was given before with other content. Internal to append. Takes no locks.
--
-- seq: the command that has the key; NULL: it is in the intake, and has no number yet. A command that an operator
-- amended may be repeated as its caller gave it. Raises IT008. The error does not show that command: another caller may
-- have appended it.
CREATE FUNCTION inturn._refuse_reuse(
    topic text, key text, seq bigint, name text, payload jsonb, idempotency_key text
) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    same constant boolean := CASE WHEN seq IS NULL THEN (
        SELECT (i.name, i.payload) = (_refuse_reuse.name, coalesce(_refuse_reuse.payload, '{}')) FROM inturn.intake i
        WHERE i.topic = _refuse_reuse.topic AND i.key = _refuse_reuse.key
          AND i.idempotency_key = _refuse_reuse.idempotency_key)
        ELSE inturn._has_content(topic, key, seq, name, payload) END;
BEGIN
    IF same IS FALSE THEN
        RAISE EXCEPTION USING ERRCODE = 'IT008',
            MESSAGE = format('idempotency key %L of key %L of topic %L was given before, with another name or payload',
                             left(idempotency_key, 100), key, topic),
            HINT = 'Repeat an append exactly as it was, or give another command an idempotency key of its own.';
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._refuse_reuse IS
    'Internal to append: refuses an idempotency key that was given before with other content.';
