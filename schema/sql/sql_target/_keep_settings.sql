-- Puts back those settings of the session that a SQL target has changed for longer than its transaction; returns them.
-- Internal to apply, between two of its transactions. inturn apply has a connection of its own, and resets it.
--
-- was: what this has returned before, the names and then what they were; NULL: nothing is put back. They are all that
-- everybody may set, session_replication_role, and inturn's own: to compare them takes some 40 microseconds. Nothing
-- lists the other custom ones (a.b) that were only ever SET: those stay as a target leaves them.
-- Takes no locks. Raises that a setting cannot be put back: what set it had more rights than who applies.
CREATE FUNCTION inturn._keep_settings(was text[]) RETURNS text[]
LANGUAGE plpgsql VOLATILE
-- Not pinned, for the search_path is one of them: all is qualified.
AS $$
DECLARE
    names constant pg_catalog.text[] := coalesce(was[1 : pg_catalog.cardinality(was) OPERATOR(pg_catalog./) 2], ARRAY(
        SELECT s.name FROM pg_catalog.pg_settings s
        WHERE (s.context OPERATOR(pg_catalog.=) 'user' OR s.name OPERATOR(pg_catalog.=) 'session_replication_role')
          AND s.name OPERATOR(pg_catalog.<>) ALL (ARRAY['transaction_isolation', 'transaction_read_only',
                                                        'transaction_deferrable'])
        UNION SELECT pg_catalog.unnest(ARRAY['role', 'inturn.careful_keys', 'inturn.max_claim_octets', 'inturn.notify',
                                             'inturn.os_user', 'inturn.acting_as'])));
    are constant pg_catalog.text[] := names OPERATOR(pg_catalog.||)
        ARRAY(SELECT coalesce(pg_catalog.current_setting(n, true), '') FROM pg_catalog.unnest(names) n);
    changed pg_catalog.record;
BEGIN
    IF was IS NULL OR was OPERATOR(pg_catalog.=) are THEN
        RETURN are;
    END IF;
    FOR changed IN
        SELECT n.name, was[pg_catalog.cardinality(names) OPERATOR(pg_catalog.+) n.place] AS value
        FROM pg_catalog.unnest(names) WITH ORDINALITY n (name, place)
        WHERE was[pg_catalog.cardinality(names) OPERATOR(pg_catalog.+) n.place]
              OPERATOR(pg_catalog.<>) are[pg_catalog.cardinality(names) OPERATOR(pg_catalog.+) n.place]
    LOOP
        BEGIN
            PERFORM pg_catalog.set_config(changed.name, changed.value, false);
        EXCEPTION WHEN OTHERS THEN
            RAISE USING ERRCODE = SQLSTATE,
                MESSAGE = pg_catalog.format('a command has left %s changed, which cannot be put back: %s',
                                            changed.name, SQLERRM),
                HINT = 'What was applied is committed. CALL inturn.apply() in a new session, and let targets set it in '
                       'the SET clause of a function.';
        END;
    END LOOP;
    RETURN was;
END
$$;
COMMENT ON FUNCTION inturn._keep_settings IS 'Internal to apply: puts back the settings that a SQL target has changed.';
