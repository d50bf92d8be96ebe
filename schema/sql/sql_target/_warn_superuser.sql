-- Warns an applier whose login is a superuser: whatever a target does, it does as a superuser. Internal to apply. Takes
-- no locks.
CREATE FUNCTION inturn._warn_superuser() RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF (SELECT r.rolsuper FROM pg_roles r WHERE r.rolname = current_user) THEN
        RAISE WARNING USING
            MESSAGE = format('applying as %I, a superuser: targets can do anything on this server', current_user),
            HINT = 'Apply with a login of its own that has inturn_applier.';
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._warn_superuser IS 'Internal to apply: warns whoever applies as a superuser.';
