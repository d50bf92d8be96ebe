-- Refuses a user who may neither append to a topic nor operate it: see _is_granted. Internal to the waits. Takes no
-- locks.
--
-- Raises IT014.
CREATE FUNCTION inturn._require_sight(topic text) RETURNS void
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    who constant name := coalesce(nullif(current_setting('role'), 'none')::name, session_user);
BEGIN
    IF NOT inturn._is_granted(topic, 'caller')
        AND NOT (pg_has_role(who, 'inturn_operator', 'USAGE') AND inturn._is_granted(topic, 'operator')) THEN
        PERFORM inturn._require_grant(topic, 'caller');
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._require_sight IS
    'Internal to the waits: refuses whoever may neither append to a topic nor operate it.';
