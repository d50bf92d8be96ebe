-- Explains a key whose next number is missing while later ones are there: it waits for it, or is held because it waited
-- too long; or the missing one is being appended. Nothing of a key that waits for no number. Internal to why.
--
-- locked: its row in key_sequence is. Locks what _explain_appending does, for a moment.
CREATE FUNCTION inturn._explain_gap(c inturn.key_cursor, t inturn.topic, locked boolean)
RETURNS TABLE (cause text, since timestamptz, says text, to_do text, details jsonb)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    gap record;
    seq constant bigint := c.applied_seq + 1;
    missing text;
    there text;
    open record;
    sessions jsonb;
    to_end text;
BEGIN
    SELECT * INTO gap FROM inturn._find_later(c);
    IF gap.later = 0 THEN
        RETURN;
    ELSIF locked THEN
        SELECT * INTO open FROM inturn._explain_appending(c, t.numbering);
        IF open.details ->> 'next_seq' IS NOT NULL THEN
            RETURN QUERY SELECT open.cause, open.since, open.says, open.to_do, open.details;
            RETURN;
        END IF;
        sessions := open.details -> 'sessions';
        to_end := open.to_do;
    END IF;
    missing := CASE WHEN gap.first_seq = seq + 1 THEN format('command %s', seq)
                    ELSE format('commands %s to %s', seq, gap.first_seq - 1) END;
    there := CASE gap.later WHEN 1 THEN format('1 later one is there, %s', gap.last_seq)
                            ELSE format('%s later ones are there, %s to %s', gap.later, gap.first_seq,
                                        gap.last_seq) END;
    RETURN QUERY SELECT CASE WHEN c.held_at IS NULL THEN 'waiting' ELSE 'held' END,
        coalesce(c.held_at, c.waiting_at, gap.first_at),
        format(CASE WHEN c.held_at IS NULL THEN 'It waits for %s, which nobody has appended. %s'
                    ELSE 'It waited for %s, which nobody appended, for longer than the topic''s gap_timeout, %3$s. '
                         '%2$s' END,
               missing, there, t.gap_timeout)
        || CASE WHEN c.held_at IS NULL AND c.waiting_at + t.gap_timeout > clock_timestamp()
                THEN format('. It will be held at %s if command %s does not come',
                            to_char((c.waiting_at + t.gap_timeout) AT TIME ZONE 'UTC',
                                    'YYYY-MM-DD HH24:MI:SS "UTC"'), seq)
                ELSE '' END
        -- One of those that wait behind it may have the missing number.
        || coalesce('. Callers have to wait for an open transaction of another command: '
                    || inturn._name_sessions(sessions), ''),
        concat_ws(E'\n',
            CASE WHEN c.held_at IS NOT NULL
                     THEN format('inturn retry --topic {topic} {key}  # to wait for %s once more', seq) END,
            to_end,
            format('inturn fill-gap --topic {topic} --seq %s --reason TEXT {key}  # to go on without it', seq)),
        jsonb_build_object('seq', seq, 'until_seq', gap.first_seq - 1, 'later', gap.later, 'last_seq', gap.last_seq,
                           'waiting_at', c.waiting_at, 'held_from', c.waiting_at + t.gap_timeout, 'error', c.last_error,
                           'sessions', coalesce(sessions, '[]'));
END
$$;
COMMENT ON FUNCTION inturn._explain_gap IS 'Internal to why: explains a key whose next number is missing.';
