-- Explains a key whose next command is being appended by a transaction that is still open. Internal to why. Takes no
-- locks.
--
-- sessions: from _session_facts, of which one is the caller. waiting: how many other callers wait for it.
-- next_seq: NULL when it may be another command, of a key whose callers number. locker: the xmax of the key's row in
-- key_sequence; NULL: it is not known.
CREATE FUNCTION inturn._explain_append(sessions jsonb, waiting bigint, next_seq bigint, locker xid DEFAULT NULL)
RETURNS TABLE (cause text, since timestamptz, says text, to_do text, details jsonb)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT 'appending', (sessions->0->>'since')::timestamptz,
    format('%s is being appended by a transaction that is still open: %s',
           coalesce('Its next command, ' || next_seq || ',', 'A command of it'),
           inturn._name_sessions(sessions, inturn._describe_locker(locker, 'inturn.key_sequence')))
    || CASE waiting WHEN 0 THEN '' WHEN 1 THEN '. 1 more caller waits behind it'
                    ELSE format('. %s more callers wait behind it, one behind the other', waiting) END,
    CASE jsonb_array_length(sessions)
        WHEN 0 THEN inturn._find_unseen(locker)
        ELSE coalesce(inturn._await_standby(sessions),
                      format('psql "$INTURN_DSN" -c "SELECT pg_terminate_backend(%s)"  # if it will never commit',
                             CASE jsonb_array_length(sessions) WHEN 1 THEN sessions->0->>'backend'
                                  ELSE 'BACKEND' END)) END,
    jsonb_build_object('sessions', sessions, 'waiting', waiting, 'next_seq', next_seq)
$$;
COMMENT ON FUNCTION inturn._explain_append IS 'Internal to why: explains a key whose next command is being appended.';
