-- Puts back those settings of the session that a SQL target has changed for longer than its transaction; returns them.
-- Internal to apply, between two of its transactions. inturn apply takes another connection instead.
--
-- was: what this has returned before; NULL: nothing is put back. They are those on which targets depend most, and that
-- everybody may set.
-- Takes no locks.
CREATE FUNCTION inturn._keep_settings(was text[]) RETURNS text[]
LANGUAGE plpgsql VOLATILE
-- Not pinned, for the search_path is one of them: all is qualified.
AS $$
DECLARE
    names constant pg_catalog.text[] := ARRAY[
        'role', 'search_path', 'DateStyle', 'IntervalStyle', 'TimeZone', 'lock_timeout', 'synchronous_commit',
        'default_transaction_isolation', 'default_transaction_read_only', 'idle_in_transaction_session_timeout'];
    are pg_catalog.text[];
BEGIN
    SELECT pg_catalog.array_agg(pg_catalog.current_setting(n.name) ORDER BY n.place) INTO are
    FROM pg_catalog.unnest(names) WITH ORDINALITY n (name, place);
    IF was IS NULL OR was OPERATOR(pg_catalog.=) are THEN
        RETURN are;
    END IF;
    PERFORM pg_catalog.set_config(n.name, was[n.place], false)
    FROM pg_catalog.unnest(names) WITH ORDINALITY n (name, place)
    WHERE was[n.place] OPERATOR(pg_catalog.<>) are[n.place];
    RETURN was;
END
$$;
COMMENT ON FUNCTION inturn._keep_settings IS 'Internal to apply: puts back the settings that a SQL target has changed.';
