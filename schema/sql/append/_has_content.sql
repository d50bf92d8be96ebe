-- Says whether a command has this content; NULL when there is no such command. Internal to append. Takes no locks.
--
-- A command that an operator amended has both contents: the one that its caller gave, and the current one.
CREATE FUNCTION inturn._has_content(topic text, key text, seq bigint, name text, payload jsonb) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    same boolean;
BEGIN
    SELECT (l.name, l.payload) = (_has_content.name, coalesce(_has_content.payload, '{}')) INTO same
    FROM inturn.command_log l
    WHERE l.topic = _has_content.topic AND l.key = _has_content.key AND l.seq = _has_content.seq;
    IF same IS FALSE THEN
        SELECT a.before = jsonb_build_object('name', _has_content.name, 'payload', coalesce(_has_content.payload, '{}'))
        INTO same FROM inturn.operator_action a
        WHERE a.topic = _has_content.topic AND a.key = _has_content.key AND a.seq = _has_content.seq
          AND a.action = 'amend'
        ORDER BY a.id LIMIT 1;
        RETURN coalesce(same, false);
    END IF;
    RETURN same;
END
$$;
COMMENT ON FUNCTION inturn._has_content IS 'Internal to append: whether a command has this content.';
