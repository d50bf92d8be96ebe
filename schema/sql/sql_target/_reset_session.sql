-- Lets no setting, advisory lock, LISTEN, temporary table or prepared statement stay in the session that a SQL target
-- has left there, and gives it these settings. Internal to inturn apply, after each batch of a SQL target, in its
-- transaction: nothing tells what a target has done.
--
-- All settings are as the session began with them, then names and settings, in parallel: what the connection was given
-- at its beginning; its advisory locks, what it listens to, its temporary tables and prepared statements are gone; what
-- the driver has prepared stays. names NULL: nothing is done, for the session is not the applier's own.
-- Gives back the session's advisory locks.
CREATE FUNCTION inturn._reset_session(names text[], settings text[]) RETURNS void
LANGUAGE plpgsql VOLATILE
-- Not pinned: its end would put back what it has reset. All is qualified.
AS $$
DECLARE
    prepared pg_catalog.text;
BEGIN
    IF names IS NULL THEN
        RETURN;
    END IF;
    RESET ALL;
    PERFORM pg_catalog.set_config(s.name, s.setting, false)
    FROM ROWS FROM (pg_catalog.unnest(names), pg_catalog.unnest(settings)) s (name, setting);
    PERFORM pg_catalog.pg_advisory_unlock_all();
    UNLISTEN *;
    FOR prepared IN SELECT s.name FROM pg_catalog.pg_prepared_statements s WHERE s.from_sql LOOP
        EXECUTE pg_catalog.format('DEALLOCATE %I', prepared);
    END LOOP;
    IF pg_catalog.pg_my_temp_schema() OPERATOR(pg_catalog.<>) 0 THEN
        DISCARD TEMP;
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._reset_session IS
    'Internal to inturn apply: lets nothing stay in the session that a SQL target has left.';
