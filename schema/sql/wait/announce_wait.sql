CREATE FUNCTION inturn.announce_wait(topic text, key text) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
-- Announces that somebody waits for a key, and returns the channel on which it is notified for the next 20 seconds,
-- whenever the key moves on or is held. Announce it again every 10 seconds.
--
-- Commit, LISTEN, and only then look where the key stands: see wait_state. Everybody who waits for a key shares one
-- announcement.
-- NULL: more is announced than there is room for; look again from time to time.
-- Locks nothing but rows of waits that are over, skipping locked ones.
-- Raises IT001 for an unknown topic, IT002 for a key that cannot be one, IT014 where the topic is granted to others.
DECLARE
    now constant timestamptz := clock_timestamp();
    announced bigint;
    is_full boolean;
BEGIN
    PERFORM inturn._refuse_command(topic, key, 'wait', NULL, NULL);
    PERFORM inturn._require_sight(topic);
    IF (SELECT true FROM inturn.waiter w WHERE w.topic = announce_wait.topic AND w.key = announce_wait.key
        AND w.until > now + interval '10 seconds' LIMIT 1) IS NULL
    THEN
        is_full := pg_relation_size('inturn.waiter') >= inturn._max_waiter_octets();
        IF NOT is_full THEN
            INSERT INTO inturn.waiter (topic, key, until)
            VALUES (announce_wait.topic, announce_wait.key, now + interval '20 seconds') RETURNING id INTO announced;
        END IF;
        -- Also where there is no room: what is over has to go, or there never would be again.
        IF announced % 100 = 0 OR is_full AND random() < 0.01 THEN
            DELETE FROM inturn.waiter w WHERE w.ctid = ANY (ARRAY(
                SELECT o.ctid FROM inturn.waiter o WHERE o.until < now FOR UPDATE SKIP LOCKED));
        END IF;
    END IF;
    RETURN CASE WHEN is_full IS NOT TRUE THEN inturn._wait_channel(topic, key) END;
END
$$;
COMMENT ON FUNCTION inturn.announce_wait IS
    'Announces that somebody waits for a key; returns the channel on which it is notified.';
