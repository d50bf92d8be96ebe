-- Refuses a command for a key that has as many commands pending as its topic allows. Internal to append. Takes no
-- locks.
--
-- last_seq: the number that the command has got; NULL where it gets one on arrival: it is the one after the last in the
-- log, so what is in the intake beside it does not count. max_pending: of the topic; NULL for no limit.
-- Where the key stands is looked up anew: an operator may have moved it since its last turn.
-- Raises IT009.
CREATE FUNCTION inturn._refuse_pending(topic text, key text, last_seq bigint, max_pending bigint) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    applied bigint;
BEGIN
    IF max_pending IS NULL THEN
        RETURN;
    END IF;
    applied := coalesce((SELECT c.applied_seq
                         FROM inturn._find_cursor(_refuse_pending.topic, _refuse_pending.key) c), 0);
    IF last_seq IS NULL THEN
        last_seq := 1 + coalesce((SELECT l.seq FROM inturn.command_log l
                                  WHERE l.topic = _refuse_pending.topic AND l.key = _refuse_pending.key
                                    AND l.seq > applied
                                  ORDER BY l.seq DESC LIMIT 1), applied);
    END IF;
    IF last_seq > applied + max_pending THEN
        RAISE EXCEPTION USING ERRCODE = 'IT009',
            MESSAGE = format('key %L of topic %L has %s commands pending; its topic allows %s', key, topic,
                             last_seq - 1 - applied, max_pending),
            HINT = 'Append again when the appliers have caught up, find out why the key does not move, or raise the '
                   'topic''s max_pending.';
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._refuse_pending IS
    'Internal to append: refuses a command for a key that has as many commands pending as its topic allows.';
