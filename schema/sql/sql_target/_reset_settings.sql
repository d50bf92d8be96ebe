-- Puts back all settings of the session to those that it began with, and then these. Internal to inturn apply, after
-- each batch of a SQL target, in its transaction: nothing tells what a target has set.
--
-- names, settings: in parallel; what the connection was given at its beginning. NULL: nothing is put back, for the
-- session is not the applier's own. Takes no locks.
CREATE FUNCTION inturn._reset_settings(names text[], settings text[]) RETURNS void
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
END
$$;
COMMENT ON FUNCTION inturn._reset_settings IS 'Internal to inturn apply: puts back all settings of the session.';
