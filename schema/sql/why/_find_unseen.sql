-- Returns the command that finds who has locked a row, where this session may not see it. Internal to why.
-- Takes no locks.
CREATE FUNCTION inturn._find_unseen() RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT CASE WHEN EXISTS (SELECT FROM pg_prepared_xacts x WHERE x.database = current_database())
    THEN 'psql "$INTURN_DSN" -c "SELECT * FROM pg_prepared_xacts"'
    ELSE 'psql "$INTURN_DSN" -c "SELECT * FROM pg_stat_activity WHERE xact_start IS NOT NULL"' END
$$;
COMMENT ON FUNCTION inturn._find_unseen IS 'Internal to why: the command that helps to find whoever cannot be seen.';
