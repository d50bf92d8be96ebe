-- Says whether a given number is appended already, with the same content. Internal to append. Takes no locks.
--
-- A command that an operator amended may be repeated as its caller gave it.
-- Raises IT051 when it is there with other content. The error does not show that content: another caller may have
-- appended it.
CREATE FUNCTION inturn._is_there(topic text, key text, seq bigint, name text, payload jsonb) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    same constant boolean := inturn._has_content(topic, key, seq, name, payload);
BEGIN
    IF same IS FALSE THEN
        RAISE EXCEPTION USING ERRCODE = 'IT051',
            MESSAGE = format('seq %s of key %L of topic %L is there with other content', seq, key, topic),
            HINT = 'One of the two callers numbers wrongly. The one that is there stays.';
    END IF;
    RETURN same IS TRUE;
END
$$;
COMMENT ON FUNCTION inturn._is_there IS
    'Internal to append: whether a given number is appended already, with the same content.';
