-- Says whether a given number is appended already, with the same content. Internal to append. Takes no locks.
--
-- What an operator amended is compared as its caller gave it.
-- Raises IT051 when it is there with other content.
CREATE FUNCTION inturn._is_there(topic text, key text, seq bigint, name text, payload jsonb) RETURNS boolean
LANGUAGE plpgsql STABLE
SET enable_seqscan = off
AS $$
DECLARE
    there inturn.command_log;
    original jsonb;
BEGIN
    SELECT * INTO there FROM inturn.command_log l
    WHERE l.topic = _is_there.topic AND l.key = _is_there.key AND l.seq = _is_there.seq;
    IF NOT FOUND THEN
        RETURN false;
    ELSIF (there.name, there.payload) = (name, coalesce(payload, '{}')) THEN
        RETURN true;
    END IF;
    SELECT a.before INTO original FROM inturn.operator_action a
    WHERE a.topic = _is_there.topic AND a.key = _is_there.key AND a.seq = _is_there.seq AND a.action = 'amend' ORDER BY a.id LIMIT 1;
    IF original IS NOT DISTINCT FROM jsonb_build_object('name', name, 'payload', coalesce(payload, '{}')) THEN
        RETURN true;
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'IT051',
        MESSAGE = format('seq %s of key %L of topic %L is there with other content: command %L of %s',
                         seq, key, topic, there.name, to_char(there.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"')),
        HINT = 'One of the two callers numbers wrongly. The one that is there stays.';
END
$$;
COMMENT ON FUNCTION inturn._is_there IS 'Internal to append: whether a given number is appended already, with the same content.';
