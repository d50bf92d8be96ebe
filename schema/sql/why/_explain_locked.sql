-- Explains a key whose cursor is locked by an applier at work on it, or by another session; nothing when it is a
-- caller's. Internal to why. Locks what _find_locks does, for a moment.
--
-- next: the key's next command; its seq is NULL when nothing is pending.
CREATE FUNCTION inturn._explain_locked(topic text, key text, next inturn.command_log)
RETURNS TABLE (cause text, since timestamptz, says text, to_do text, details jsonb)
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT CASE WHEN h.applies THEN 'applying' ELSE 'row_locked' END, (h.first->>'since')::timestamptz,
    CASE WHEN h.applies THEN format(coalesce('Command ' || inturn._name_command(next)
                                             || ', one after it, or another key of the same transaction is being '
                                                'applied by %s',
                                             'It is in the hands of %s'), h.who)
                             || coalesce('. It waits for ' || (h.first->>'waits_for'), '')
         ELSE 'No applier can take it, because it is locked by ' || h.who END,
    CASE WHEN h.blocker IS NOT NULL
             THEN format('psql "$INTURN_DSN" -c "SELECT pg_terminate_backend(%s)"  # ends what it waits for', h.blocker)
         WHEN h.first IS NULL THEN inturn._find_unseen(h.locker)
         WHEN h.standby IS NOT NULL THEN h.standby
         ELSE format('psql "$INTURN_DSN" -c "SELECT pg_terminate_backend(%s)"  # %s',
                     CASE jsonb_array_length(h.sessions) WHEN 1 THEN h.first->>'backend' ELSE 'BACKEND' END,
                     CASE WHEN h.applies THEN 'if it hangs: its turn is taken again' ELSE 'if it will never commit' END)
              -- Ending one session after the other does not help: the command would hang the next one.
              || CASE WHEN h.applies AND NOT EXISTS (SELECT FROM inturn.topic t
                                                     WHERE t.name = _explain_locked.topic AND t.timeout IS NOT NULL)
                      THEN E'\ninturn topic set --timeout 30s {topic}  # so that a command that hangs fails instead'
                          ELSE '' END END,
    jsonb_build_object('sessions', h.sessions, 'seq', next.seq)
FROM (
    SELECT s.sessions, s.sessions->0 AS first, s.sessions->0->>'kind' = 'applier' AS applies,
           inturn._name_sessions(s.sessions, inturn._describe_locker(c.locker, c.relation)) AS who,
           s.sessions->0->'blocked_by'->>0 AS blocker, c.locker, inturn._await_standby(s.sessions) AS standby
    FROM inturn._find_locker(_explain_locked.topic, _explain_locked.key) c CROSS JOIN LATERAL (
        SELECT inturn._session_facts(inturn._lock_holders(c.locker, c.relation))) s (sessions)) h
WHERE NOT jsonb_path_exists(h.sessions, '$[*] ? (@.kind == "caller")')
  -- Nobody can be seen where whoever had it has let it go meanwhile, as an applier may at any moment.
  AND (h.first IS NOT NULL
       OR (SELECT l.on_cursor FROM inturn._find_locks(_explain_locked.topic, _explain_locked.key) l))
$$;
COMMENT ON FUNCTION inturn._explain_locked IS
    'Internal to why: explains a key that is locked by an applier or another session.';
