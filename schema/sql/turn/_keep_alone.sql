-- Has a key taken alone from now on whose failure this transaction has recorded: its handler ends transactions, which
-- others would share. Internal to the appliers.
--
-- Locks nothing that fail has not.
CREATE FUNCTION inturn._keep_alone(topic text, key text, epoch bigint) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
UPDATE inturn.key_mark m SET lost = 1
WHERE m.topic = _keep_alone.topic AND m.key = _keep_alone.key AND m.epoch = _keep_alone.epoch
  AND m.attempts > 0 AND m.xmin = pg_current_xact_id()::xid
$$;
COMMENT ON FUNCTION inturn._keep_alone IS
    'Internal to the appliers: has a key taken alone whose failure was just recorded.';
