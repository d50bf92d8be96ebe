-- Returns where a key stands, as the view key_cursor has it; no row: there is no such key.
-- Internal. Takes no locks. Qualified, not pinned: it is inlined.
--
-- Found from the end of the key's entries in key_sequence, where its newest version is: see there.
CREATE FUNCTION inturn._find_cursor(topic text, key text) RETURNS SETOF inturn.key_cursor
LANGUAGE sql STABLE
AS $$
SELECT c.* FROM inturn.key_cursor c
WHERE c.topic OPERATOR(pg_catalog.=) _find_cursor.topic
  AND c.key OPERATOR(pg_catalog.>=) _find_cursor.key AND c.key OPERATOR(pg_catalog.<=) _find_cursor.key
ORDER BY c.key DESC LIMIT 1
$$;
COMMENT ON FUNCTION inturn._find_cursor IS 'Internal: where a key stands.';
