CREATE FUNCTION inturn.announce_sleep(topics text[]) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
-- Announces that an applier of these topics is about to sleep, so that appends notify it for the next two seconds.
-- An empty name stands for every topic: for an applier of many, which would write a row for each.
--
-- The applier commits, looks once more for ready keys, and only then sleeps, for a second at most.
-- Looks at the keys that callers with old snapshots could not wake (see _take_hints).
-- Locks the topics' rows in listener, skipping locked ones, and writes them at most once a second; for a row that is
-- not there yet an advisory lock, unless somebody else has it. So an applier that does not commit keeps no other one
-- from going on: those look within a second anyway.
DECLARE
    now constant timestamptz := clock_timestamp();
    until constant timestamptz := now + interval '2 seconds';
    -- Not further back, where a row is there: a held snapshot keeps a version a second.
    since constant timestamptz := now - interval '1 minute';
    others text[];
BEGIN
    UPDATE inturn.listener l SET asleep_until = until
    WHERE l.ctid = ANY (ARRAY(
        SELECT o.ctid FROM inturn.listener o
        WHERE o.topic = ANY (topics) AND o.asleep_until BETWEEN since AND now + interval '1 second'
        FOR UPDATE SKIP LOCKED));
    others := ARRAY(SELECT DISTINCT u.topic COLLATE "C" FROM unnest(topics) u (topic)
                    WHERE u.topic IS NOT NULL AND NOT EXISTS (
                        SELECT FROM inturn.listener l WHERE l.topic = u.topic AND l.asleep_until >= since));
    IF others <> '{}' THEN
        UPDATE inturn.listener l SET asleep_until = until
        WHERE l.ctid = ANY (ARRAY(
            SELECT o.ctid FROM inturn.listener o WHERE o.topic = ANY (others) FOR UPDATE SKIP LOCKED));
        INSERT INTO inturn.listener (topic, asleep_until)
        SELECT t.topic, until FROM unnest(others) t (topic)
        WHERE NOT EXISTS (SELECT FROM inturn.listener l WHERE l.topic = t.topic)
          AND pg_try_advisory_xact_lock(hashtextextended('inturn.listens ' || t.topic, 0));
    END IF;
    PERFORM inturn._take_hints(topics);
END
$$;
COMMENT ON FUNCTION inturn.announce_sleep IS 'Announces that an applier of these topics is about to sleep.';
