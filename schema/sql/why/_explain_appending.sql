-- Explains a key whose row in key_sequence a caller's open transaction has locked. Internal to why.
--
-- Where callers number, they may append any number: it is looked which. Locks what _is_append_open does, for a moment.
CREATE FUNCTION inturn._explain_appending(c inturn.key_cursor, numbering text)
RETURNS TABLE (cause text, since timestamptz, says text, to_do text, details jsonb)
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT e.* FROM inturn.key_sequence s
CROSS JOIN LATERAL inturn._explain_append(
    inturn._session_facts(inturn._lock_holders(s.xmax, 'inturn.key_sequence')),
    -- All that wait for a row stand in its queue, the lock on its place.
    (SELECT count(DISTINCT l.pid) FROM pg_locks l
     WHERE l.locktype = 'tuple' AND l.relation = s.tableoid
       AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
       AND (l.page, l.tuple) = ((s.ctid::text::point)[0], (s.ctid::text::point)[1])),
    CASE WHEN numbering <> 'given'
              OR inturn._is_append_open(c.topic, c.key, c.applied_seq + 1) THEN c.applied_seq + 1 END, s.xmax) e
WHERE s.topic = c.topic AND s.key = c.key
$$;
COMMENT ON FUNCTION inturn._explain_appending IS
    'Internal to why: explains a key that a caller''s open transaction has locked.';
