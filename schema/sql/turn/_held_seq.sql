-- Returns up to where a key is applied that this transaction has claimed for a turn, or that is leased for it; NULL:
-- neither.
-- Internal to what reads and plans for appliers. Takes no locks.
--
-- epoch: of the turn; NULL: of whatever turn this transaction has claimed the key for.
-- Raises what _is_leased does.
CREATE FUNCTION inturn._held_seq(topic text, key text, epoch bigint) RETURNS bigint
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
BEGIN
    RETURN (SELECT c.applied_seq FROM inturn.ticket c
            WHERE c.topic = _held_seq.topic AND c.key = _held_seq.key
              AND c.epoch >= greatest(coalesce(_held_seq.epoch, 0), 0) - 1
              AND c.epoch <= coalesce(_held_seq.epoch, 9223372036854775807)
              AND CASE WHEN c.epoch = _held_seq.epoch THEN inturn._is_leased(c.topic, c.key, c.epoch)
                       ELSE c.xmax = pg_current_xact_id()::xid END
            LIMIT 1);
END
$$;
COMMENT ON FUNCTION inturn._held_seq IS 'Internal: up to where a key is applied that is claimed or leased for a turn.';
