-- Returns the settings of a topic; NULL: there is no such topic. Internal to the appliers. Takes no locks.
CREATE FUNCTION inturn._settings_of(topic text) RETURNS inturn.topic
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
SELECT t FROM inturn.topic t WHERE t.name = _settings_of.topic
$$;
COMMENT ON FUNCTION inturn._settings_of IS 'Internal to the appliers: the settings of a topic.';
