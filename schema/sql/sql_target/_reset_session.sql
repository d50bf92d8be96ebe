-- Lets no setting, advisory lock, LISTEN or temporary table stay in the session that a SQL target has left there, and
-- gives it these settings. Internal to inturn apply, after each batch of a SQL target, in its transaction: nothing
-- tells what a target has done.
--
-- All settings are as the session began with them, then names and settings, in parallel: what the connection was given
-- at its beginning; its advisory locks, what it listens to and its temporary tables are gone. names NULL: nothing is
-- done, for the session is not the applier's own.
-- Gives back the session's advisory locks.
CREATE FUNCTION inturn._reset_session(names text[], settings text[]) RETURNS void
LANGUAGE plpgsql VOLATILE
-- Not pinned: its end would put back what it has reset. All is qualified.
AS $$
BEGIN
    IF names IS NULL THEN
        RETURN;
    END IF;
    RESET ALL;
    PERFORM pg_catalog.set_config(s.name, s.setting, false)
    FROM ROWS FROM (pg_catalog.unnest(names), pg_catalog.unnest(settings)) s (name, setting);
    PERFORM pg_catalog.pg_advisory_unlock_all();
    UNLISTEN *;
    IF pg_catalog.pg_my_temp_schema() OPERATOR(pg_catalog.<>) 0 THEN
        DISCARD TEMP;
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._reset_session IS
    'Internal to inturn apply: lets nothing stay in the session that a SQL target has left.';
