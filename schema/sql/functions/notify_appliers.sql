-- Wakes a sleeping applier of a topic, after an operator has made a key ready. Internal. Takes no locks.
CREATE FUNCTION inturn.notify_appliers(topic text) RETURNS void
LANGUAGE sql VOLATILE
AS $$
SELECT pg_notify('inturn.ready', l.topic) FROM inturn.listener l
WHERE l.topic = notify_appliers.topic AND l.asleep_until > clock_timestamp()
$$;
COMMENT ON FUNCTION inturn.notify_appliers IS 'Internal to the operators'' functions: wakes a sleeping applier of a topic.';
