-- Notes of an applier whose lease has run out that it has ended, if it is gone: it ended because of the key that it
-- took alone. The next applier is not careful for it then (see _careful_keys), whoever has that key by then. Internal.
--
-- Locks its row, if nobody else has.
CREATE FUNCTION inturn._note_end(applier text) RETURNS void
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
UPDATE inturn.applier a SET ended = true
FROM (SELECT e.applier FROM inturn.applier e
      LEFT JOIN pg_stat_activity s ON s.pid = e.backend_pid AND s.datname = current_database()
                                      AND coalesce(s.backend_start, e.backend_start) = e.backend_start
      WHERE e.applier = _note_end.applier AND NOT e.ended
        AND NOT inturn._is_alive(e, s.pid, s.state, s.query_start)
      FOR UPDATE OF e SKIP LOCKED) gone
WHERE a.applier = gone.applier
$$;
COMMENT ON FUNCTION inturn._note_end IS
    'Internal: notes that an applier whose lease has run out has ended, if it is gone.';
