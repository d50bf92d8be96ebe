-- Explains why a key does not move: the first of the causes that holds. Internal to why.
-- Locks what _find_locks and _is_append_open do, for a moment.
CREATE FUNCTION inturn._explain_key(topic text, key text)
RETURNS TABLE (cause text, since timestamptz, says text, to_do text, details jsonb)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    locked record;
    here record;
    c inturn.key_cursor;
    t inturn.topic;
    next inturn.command_log;
BEGIN
    SELECT * INTO locked FROM inturn._find_locks(topic, key);
    SELECT * INTO t FROM inturn.topic WHERE name = _explain_key.topic;
    -- One statement, one snapshot: an idle key with something pending would be an alarm.
    SELECT k AS cursor, l AS next INTO here FROM inturn.key_cursor k
    LEFT JOIN inturn.command_log l ON l.topic = k.topic AND l.key = k.key AND l.seq = k.applied_seq + 1
    WHERE k.topic = _explain_key.topic AND k.key = _explain_key.key;
    IF NOT FOUND THEN
        RETURN QUERY SELECT * FROM inturn._explain_unknown(topic, key);
        RETURN;
    END IF;
    c := here.cursor;
    next := here.next;
    IF locked.on_cursor THEN
        RETURN QUERY SELECT * FROM inturn._explain_locked(topic, key, next);
        IF FOUND THEN RETURN; END IF;
    END IF;
    IF c.held_at IS NOT NULL AND c.waiting_at IS NOT NULL THEN
        -- Not a failure: what it waits for may be on its way.
        RETURN QUERY SELECT * FROM inturn._explain_gap(c, t, locked.on_sequence);
        IF FOUND THEN RETURN; END IF;
        IF inturn._seen_state(c) = 'ready' THEN -- it has come; as an applier will have it that takes the hint
            c.held_at := NULL; c.attempts := 0; c.last_error := NULL;
        END IF;
    END IF;
    RETURN QUERY SELECT * FROM inturn._explain_standstill(c, t, next);
    IF FOUND THEN RETURN; END IF;
    RETURN QUERY SELECT * FROM inturn._explain_lease(c, t, next);
    IF FOUND THEN RETURN; END IF;
    IF next.seq IS NULL THEN
        RETURN QUERY SELECT * FROM inturn._explain_gap(c, t, locked.on_sequence);
        IF FOUND THEN RETURN; END IF;
        RETURN QUERY SELECT * FROM inturn._explain_empty(c, t, locked.on_sequence);
    ELSE
        RETURN QUERY SELECT * FROM inturn._explain_ready(c, t, next);
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._explain_key IS 'Internal to why: the first cause that holds.';
