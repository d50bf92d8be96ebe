-- Returns how many keys of a topic an applier takes alone when it starts: 20, or what the session's inturn.careful_keys
-- says.
-- Internal to apply. Takes no locks.
CREATE FUNCTION inturn._careful_keys() RETURNS integer
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT coalesce(nullif(current_setting('inturn.careful_keys', true), '')::integer, 20)
$$;
COMMENT ON FUNCTION inturn._careful_keys IS 'Internal to apply: how many keys of a topic are taken alone at first.';
