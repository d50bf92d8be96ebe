-- Says where a key stands, for somebody who waits for it: without payloads and errors, which are not everybody's.
-- Internal to wait_state. Takes no locks.
--
-- goal: up to where it was waited for; NULL: nobody knows yet. known: whether anything was ever committed on the key.
CREATE FUNCTION inturn._describe_standing(
    topic text, key text, goal bigint, idempotency_key text, known boolean, applied_seq bigint, state text,
    since timestamptz
) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT format('key %L of topic %L ', key, topic)
    || CASE WHEN goal IS NOT NULL THEN format('is not applied up to %s: ', goal)
            WHEN idempotency_key IS NOT NULL
                THEN format('has no applied command with idempotency key %L: ', left(idempotency_key, 100))
            ELSE 'is not applied up to what has arrived: ' END
    || CASE WHEN NOT known THEN 'nothing was ever committed on it'
            ELSE format('it is at %s and %s', applied_seq, CASE state
                WHEN 'held' THEN 'held, until an operator acts on it,'
                WHEN 'topic paused' THEN 'its topic paused' WHEN 'waiting' THEN 'waiting for a number' ELSE state END)
                || coalesce(to_char(since AT TIME ZONE 'UTC', '" since "YYYY-MM-DD HH24:MI:SS" UTC"'), '') END
$$;
COMMENT ON FUNCTION inturn._describe_standing IS 'Internal to wait_state: where a key stands, in words.';
