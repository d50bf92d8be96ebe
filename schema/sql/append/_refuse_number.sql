-- Refuses a number that the topic cannot take from a caller, whatever the key holds. Internal to append. Takes no
-- locks.
--
-- Raises IT005 beside an idempotency key, IT007 when the topic numbers by itself, or is to be given one and is not,
-- IT050 for a number below its first.
CREATE FUNCTION inturn._refuse_number(settings inturn.topic, key text, seq bigint, idempotency_key text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF settings.numbering <> 'given' THEN
        RAISE EXCEPTION USING ERRCODE = 'IT007',
            MESSAGE = format('seq %s was given for key %L, and topic %L numbers its commands itself', seq, key,
                             settings.name),
            HINT = 'Leave seq out: the append assigns it (RETURNING seq gives it back). Or create a topic with '
                   'numbering => ''given''.';
    ELSIF seq IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'IT007',
            MESSAGE = format('no seq was given for key %L, and topic %L takes its numbers from its callers', key,
                             settings.name),
            HINT = 'Give the command''s number in its key: seq => 1, 2, 3, ...';
    ELSIF idempotency_key IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'IT005',
            MESSAGE = format('an idempotency key was given beside seq %s of key %L', seq, key),
            HINT = 'Leave it out: a given number is appended once.';
    ELSIF seq < settings.first_seq THEN
        RAISE EXCEPTION USING ERRCODE = 'IT050',
            MESSAGE = format('seq %s of key %L is below the first of topic %L, %s', seq, key, settings.name,
                             settings.first_seq),
            HINT = 'Number the commands of every key from there on, without holes.';
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._refuse_number IS
    'Internal to append: refuses a number that the topic cannot take from a caller.';
