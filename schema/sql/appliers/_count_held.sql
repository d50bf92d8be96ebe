-- Returns how many keys of some topics are held. Internal to the appliers. Takes no locks.
CREATE FUNCTION inturn._count_held(topics text[]) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
SELECT count(*) FROM inturn.key_mark m WHERE m.topic = ANY (topics) AND m.held_at IS NOT NULL
$$;
COMMENT ON FUNCTION inturn._count_held IS 'Internal to the appliers: how many keys of some topics are held.';
