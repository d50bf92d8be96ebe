-- Makes an idle key ready, and notifies if an applier of its topic may be asleep. Internal to append and the appliers.
--
-- epoch, applied_seq: where the key stands, as its last turn says; 0 for a new key.
-- The caller holds the key's row in key_sequence, so nobody else inserts this ticket. One is there already only when an
-- operator has paused the idle key: it stays as it is, and the key is looked at when the pause ends.
CREATE FUNCTION inturn._wake_key(topic text, key text, epoch bigint, applied_seq bigint) RETURNS void
LANGUAGE plpgsql VOLATILE
-- Qualified, not pinned: a microsecond of every append to an idle key.
AS $$
DECLARE
    asleep boolean;
BEGIN
    INSERT INTO inturn.ticket (topic, key, epoch, applied_seq, ready_at)
    VALUES (_wake_key.topic, _wake_key.key, _wake_key.epoch, _wake_key.applied_seq, pg_catalog.clock_timestamp())
    ON CONFLICT DO NOTHING
    RETURNING EXISTS (SELECT FROM inturn.listener l
                      -- Not OR: 17 and older would walk over all of the index. And by a time that bounds it, of which
                      -- the other one is not.
                      WHERE l.topic OPERATOR(pg_catalog.=) ANY (ARRAY[_wake_key.topic, ''])
                        AND l.asleep_until OPERATOR(pg_catalog.>) pg_catalog.statement_timestamp()
                        AND l.asleep_until OPERATOR(pg_catalog.>) pg_catalog.clock_timestamp()) INTO asleep;
    IF asleep THEN
        PERFORM inturn._notify_appliers(topic);
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._wake_key IS 'Internal: makes an idle key ready and wakes a sleeping applier.';
