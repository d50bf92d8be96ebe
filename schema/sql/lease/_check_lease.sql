-- Refuses to lease keys of topics that do not exist, or for a time that cannot be. Internal to claim. Takes no locks.
--
-- Raises IT001, and what _lease_end raises.
CREATE FUNCTION inturn._check_lease(topics text[], lease interval) RETURNS void
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
BEGIN
    PERFORM inturn._refuse_topic(t.name) FROM unnest(topics) t (name)
    WHERE NOT EXISTS (SELECT FROM inturn.topic s WHERE s.name = t.name);
    PERFORM inturn._lease_end(s, lease) FROM inturn.topic s WHERE s.name = ANY (topics);
END
$$;
COMMENT ON FUNCTION inturn._check_lease IS
    'Internal to the claims by lease: refuses topics that do not exist, and times that cannot be.';
