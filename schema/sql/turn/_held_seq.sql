-- Returns up to where a key is applied that this transaction has claimed for a turn, or that is leased for it; NULL: neither.
-- Internal to what reads and plans for appliers. Takes no locks.
--
-- epoch: of the turn; NULL: of whatever turn this transaction has claimed the key for.
-- Raises IT014 when the topic is granted to other appliers only: an epoch can be guessed.
CREATE FUNCTION inturn._held_seq(topic text, key text, epoch bigint) RETURNS bigint
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
BEGIN
    IF EXISTS (SELECT FROM inturn.topic_grant g WHERE g.topic = _held_seq.topic AND g.role = 'applier') THEN
        PERFORM inturn._require_grant(topic, 'applier');
    END IF;
    RETURN (SELECT c.applied_seq FROM inturn.ticket c
            WHERE c.topic = _held_seq.topic AND c.key = _held_seq.key AND (
                c.xmax = pg_current_xact_id()::xid AND c.epoch = CASE WHEN _held_seq.epoch IS NULL THEN c.epoch ELSE greatest(_held_seq.epoch, 0) - 1 END
                OR c.epoch = _held_seq.epoch AND EXISTS (
                    SELECT FROM inturn.key_mark m
                    WHERE m.topic = c.topic AND m.key = c.key AND m.epoch = c.epoch AND m.claimed_by IS NOT NULL)) LIMIT 1);
END
$$;
COMMENT ON FUNCTION inturn._held_seq IS 'Internal: up to where a key is applied that is claimed or leased for a turn.';
