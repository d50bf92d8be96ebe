-- Wakes a sleeping applier of a topic, after a key has become ready. Internal. Takes no locks.
--
-- Not in a session with inturn.notify = off: a transaction that has notified cannot be prepared (PREPARE TRANSACTION).
-- Nor while the server's queue of notifications is nearly full, as it gets behind a session that listens and has a
-- transaction open for long: the caller's COMMIT would fail with 54000 once it is.
-- It is a hint: appliers look within a second anyway.
CREATE FUNCTION inturn._notify_appliers(topic text) RETURNS void
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT pg_notify('inturn.ready', _notify_appliers.topic) FROM inturn.listener l
WHERE l.topic IN (_notify_appliers.topic, '')
  AND l.asleep_until > statement_timestamp() AND l.asleep_until > clock_timestamp()
  AND lower(coalesce(current_setting('inturn.notify', true), 'on')) NOT IN ('off', 'false', 'no', '0')
  AND pg_notification_queue_usage() < 0.75
LIMIT 1
$$;
COMMENT ON FUNCTION inturn._notify_appliers IS 'Internal: wakes a sleeping applier of a topic.';
