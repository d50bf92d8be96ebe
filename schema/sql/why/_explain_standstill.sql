-- Explains a key that stands still because it is held, or because it or its topic is paused; nothing else.
-- Internal to why. Takes no locks.
--
-- next: the key's next command; its seq is NULL when nothing is pending.
CREATE FUNCTION inturn._explain_standstill(c inturn.key_cursor, t inturn.topic, next inturn.command_log)
RETURNS TABLE (cause text, since timestamptz, says text, to_do text, details jsonb)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    whole constant boolean := inturn._stored_state(c) <> 'paused';
    action inturn.operator_action;
    last timestamptz;
BEGIN
    IF c.held_at IS NOT NULL THEN
        RETURN QUERY SELECT 'held', c.held_at,
            format('Its next command, %s, failed for good at attempt %s of %s: %s',
                   coalesce(inturn._name_command(next), '?'),
                   c.attempts, t.max_attempts, inturn._shorten(c.last_error, 200)),
            concat_ws(E'\n', 'inturn show --topic {topic} --error {key}',
                      'inturn retry --topic {topic} {key}  # once its cause is put right',
                      format('inturn amend --topic {topic} --edit --reason TEXT {key} %s'
                             '  # or change the command, then retry', c.applied_seq + 1),
                      format('inturn skip --topic {topic} --seq %s --reason TEXT {key}  # or go on without it',
                             c.applied_seq + 1)),
            jsonb_build_object('error', c.last_error, 'attempts', c.attempts, 'max_attempts', t.max_attempts,
                               'seq', c.applied_seq + 1, 'name', next.name);
        RETURN;
    ELSIF whole AND (t.paused_at IS NULL OR coalesce(t.paused_until, 'infinity') <= clock_timestamp()) THEN
        RETURN;
    END IF;
    last := CASE WHEN whole THEN t.paused_until ELSE c.paused_until END;
    SELECT * INTO action FROM inturn.operator_action a
    WHERE a.topic = t.name AND a.key = CASE WHEN whole THEN '' ELSE c.key END AND a.action = 'pause'
    ORDER BY a.id DESC LIMIT 1;
    RETURN QUERY SELECT CASE WHEN whole THEN 'topic_paused' ELSE 'paused' END,
        CASE WHEN whole THEN t.paused_at ELSE c.paused_at END,
        format('%s paused %s %s%s%s', coalesce(action.acting_as, action.os_user, action.db_user, 'Somebody'),
               CASE WHEN whole THEN 'its whole topic' ELSE 'it' END,
               coalesce('until ' || to_char(last AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'),
                        'until it is resumed'),
               coalesce(': ' || inturn._shorten(action.reason, 200), '. No reason was given'),
               CASE WHEN c.lease_until > clock_timestamp()
                    THEN format('. %s has it by lease until %s, for the command in hand', inturn._describe_lease(c),
                                to_char(c.lease_until AT TIME ZONE 'UTC', 'HH24:MI:SS "UTC"'))
                    WHEN next.seq IS NULL AND (inturn._find_later(c)).later > 0
                    THEN format('. Its next command, %s, is missing too', c.applied_seq + 1)
                    WHEN next.seq IS NULL THEN '. Nothing is pending on it now' ELSE '' END),
        CASE WHEN whole THEN 'inturn resume --topic {topic}' ELSE 'inturn resume --topic {topic} {key}' END,
        jsonb_build_object('until', last, 'reason', action.reason, 'db_user', action.db_user, 'os_user', action.os_user,
                           'acting_as', action.acting_as);
END
$$;
COMMENT ON FUNCTION inturn._explain_standstill IS 'Internal to why: explains a key that is held or paused.';
