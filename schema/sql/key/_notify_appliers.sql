-- Wakes a sleeping applier of a topic, after a key has become ready. Internal. Takes no locks.
CREATE FUNCTION inturn._notify_appliers(topic text) RETURNS void
LANGUAGE sql VOLATILE
AS $$
SELECT pg_notify('inturn.ready', _notify_appliers.topic) FROM inturn.listener l
WHERE l.topic IN (_notify_appliers.topic, '') AND l.asleep_until > clock_timestamp() LIMIT 1
$$;
COMMENT ON FUNCTION inturn._notify_appliers IS 'Internal: wakes a sleeping applier of a topic.';
