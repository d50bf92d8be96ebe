-- Refuses a user who neither owns the schema nor has inturn_admin. Internal to functions that name code which
-- appliers run.
--
-- what: what needs this privilege. Which user it is: see _is_granted. Takes no locks. Raises 42501.
CREATE FUNCTION inturn._require_admin(topic text, what text) RETURNS void
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    who constant name := coalesce(nullif(current_setting('role'), 'none')::name, session_user);
BEGIN
    IF NOT pg_has_role(who, current_user, 'USAGE') AND NOT pg_has_role(who, 'inturn_admin', 'USAGE') THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = format('permission denied for topic %L: %s needs inturn_admin, which %s does not have',
                             left(topic, 200), what, who),
            HINT = 'It says what code appliers run. Ask who deploys; whoever owns the schema can: GRANT inturn_admin '
                   'TO LOGIN.';
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._require_admin IS 'Internal: refuses whoever neither owns the schema nor has inturn_admin.';
