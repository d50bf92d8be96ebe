-- Returns the commands that help where no session is seen that has locked a row: that end the prepared transaction that
-- has, or find who has. Internal to why. Takes no locks.
--
-- locker: the row's xmax; NULL: it is not known.
CREATE FUNCTION inturn._find_unseen(locker xid) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT coalesce(
    (SELECT string_agg(format('psql "$INTURN_DSN" -c %s  # %s', CASE
                WHEN x.gid ~ '^[A-Za-z0-9_.:/ -]+$' THEN format('"%s"', format(e.ending, x.gid))
                ELSE inturn._shell_word(format(e.ending, x.gid)) END, format(e.remark, x.owner)), E'\n'
                       ORDER BY e.ending)
     FROM pg_prepared_xacts x, (VALUES ('COMMIT PREPARED %L', 'by the login %s, if that is to take effect'),
                                       ('ROLLBACK PREPARED %L', 'if not')) e (ending, remark)
     WHERE x.transaction = locker AND x.database = current_database()),
    CASE WHEN EXISTS (SELECT FROM pg_prepared_xacts x WHERE x.database = current_database())
    THEN 'psql "$INTURN_DSN" -c "SELECT * FROM pg_prepared_xacts"'
    ELSE 'psql "$INTURN_DSN" -c "SELECT * FROM pg_stat_activity WHERE xact_start IS NOT NULL"' END)
$$;
COMMENT ON FUNCTION inturn._find_unseen IS 'Internal to why: what helps where whoever has locked a row is not seen.';
