-- Notes that a turn that was taken alone (see _claim_alone) has failed while it goes on: its handler takes too long.
-- Internal to the appliers, which end its session next.
--
-- From then on the command is charged with this error by whoever finds the key, if the turn records nothing else: by
-- _lose_alone, or by the next claim (see _lose_lease), which may come first.
-- No row is changed when the lease is gone. The turn has the key's ticket, so this is the one writer of a mark that has
-- not: the mark is deleted or replaced by whoever records the end of the turn.
-- Locks the key's mark. Raises IT014 when the topic is granted to other appliers only: an epoch can be guessed.
CREATE FUNCTION inturn._blame_alone(topic text, key text, epoch bigint, error text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
BEGIN
    IF EXISTS (SELECT FROM inturn.topic_grant g WHERE g.topic = _blame_alone.topic AND g.role = 'applier') THEN
        PERFORM inturn._require_grant(topic, 'applier');
    END IF;
    UPDATE inturn.key_mark m SET last_error = left(error, 8000), failed_at = clock_timestamp()
    WHERE m.topic = _blame_alone.topic AND m.key = _blame_alone.key AND m.epoch = _blame_alone.epoch
      AND m.claimed_by IS NOT NULL;
END
$$;
COMMENT ON FUNCTION inturn._blame_alone IS
    'Internal to the appliers: notes that a turn that was taken alone has failed while it goes on.';
