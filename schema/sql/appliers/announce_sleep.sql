CREATE FUNCTION inturn.announce_sleep(topics text[]) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- Announces that an applier of these topics is about to sleep, so that appends notify it for the next two seconds.
-- An empty name stands for every topic: for an applier of many, which would write a row for each.
--
-- The applier commits, looks once more for ready keys, and only then sleeps, for a second at most.
-- Looks at the keys that callers with old snapshots could not wake (see _take_hints).
-- Locks the topics' rows in listener, in byte order, and writes them at most once a second.
BEGIN
    INSERT INTO inturn.listener AS l (topic, asleep_until)
    SELECT t.topic, clock_timestamp() + interval '2 seconds'
    FROM (SELECT DISTINCT u.topic COLLATE "C" FROM unnest(topics) u (topic)) t (topic)
    WHERE t.topic IS NOT NULL
      AND NOT EXISTS (SELECT FROM inturn.listener l
                      WHERE l.topic = t.topic AND l.asleep_until > clock_timestamp() + interval '1 second')
    ORDER BY t.topic
    ON CONFLICT (topic) DO UPDATE SET asleep_until = EXCLUDED.asleep_until;
    PERFORM inturn._take_hints(topics);
END
$$;
COMMENT ON FUNCTION inturn.announce_sleep IS 'Announces that an applier of these topics is about to sleep.';
