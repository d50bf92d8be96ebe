-- Wakes those who wait for these keys. Internal to whatever moves a key or holds it, which has looked whether somebody
-- does.
--
-- Not in a session with inturn.notify = off: a transaction that has notified cannot be prepared. Nor while the server's
-- queue of notifications is nearly full: see _notify_appliers. It is a hint: whoever waits looks again every ten
-- seconds anyway. Takes no locks.
CREATE FUNCTION inturn._notify_waiters(topic text, keys text[]) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF lower(coalesce(current_setting('inturn.notify', true), 'on')) NOT IN ('off', 'false', 'no', '0')
        AND pg_notification_queue_usage() < 0.75
    THEN
        PERFORM pg_notify(inturn._wait_channel(topic, k.key), '') FROM unnest(keys) k (key);
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._notify_waiters IS 'Internal: wakes those who wait for these keys.';
