-- Notes that an applier has ended as it should: no key that it had in hand is suspected of that. Internal to appliers.
--
-- Locks: the applier's row.
CREATE FUNCTION inturn._end_applier(applier text) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
UPDATE inturn.applier a SET ended = true WHERE a.applier = _end_applier.applier
$$;
COMMENT ON FUNCTION inturn._end_applier IS 'Internal to appliers: notes that an applier has ended as it should.';
