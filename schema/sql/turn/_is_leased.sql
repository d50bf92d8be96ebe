-- Returns whether a key is leased for a turn. Internal to what reads and plans for appliers. Takes no locks.
--
-- Raises IT014 when the topic is granted to other appliers only: an epoch can be guessed.
CREATE FUNCTION inturn._is_leased(topic text, key text, epoch bigint) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM inturn.topic_grant g WHERE g.topic = _is_leased.topic AND g.role = 'applier') THEN
        PERFORM inturn._require_grant(topic, 'applier');
    END IF;
    RETURN EXISTS (
        SELECT FROM inturn.key_mark m
        WHERE m.topic = _is_leased.topic AND m.key = _is_leased.key AND m.epoch = _is_leased.epoch
          AND m.claimed_by IS NOT NULL);
END
$$;
COMMENT ON FUNCTION inturn._is_leased IS 'Internal: whether a key is leased for a turn.';
