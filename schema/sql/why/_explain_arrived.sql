-- Explains a key on which nothing that has a number is pending, and commands that have arrived have none yet. Internal
-- to why.
-- No row: there are none. Takes no locks.
CREATE FUNCTION inturn._explain_arrived(topic text, key text)
RETURNS TABLE (cause text, since timestamptz, says text, to_do text, details jsonb)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    t inturn.topic;
    waits inturn.arrived_key;
    served boolean;
    unserved record;
    holder integer; -- the backend that has the key locked
    numbers integer; -- the one that numbers in the topic at this moment, or has and did not commit
BEGIN
    SELECT i.* INTO waits FROM inturn.arrived_key i
    WHERE i.topic = _explain_arrived.topic AND i.key = _explain_arrived.key;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT * INTO t FROM inturn.topic s WHERE s.name = _explain_arrived.topic;
    served := EXISTS (SELECT FROM inturn.list_appliers() a
                      WHERE t.name = ANY (a.topics) AND a.alive AND inturn._fits(a.revision));
    SELECT * INTO unserved FROM inturn._explain_unserved(t) WHERE NOT served;
    SELECT inturn._lock_holder(s.xmax, 'inturn.key_sequence') INTO holder
    FROM inturn.key_sequence s WHERE s.topic = _explain_arrived.topic AND s.key = _explain_arrived.key;
    SELECT l.pid INTO numbers FROM pg_locks l
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
      AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
      AND (l.classid::bigint << 32) | l.objid::bigint = inturn._numbering_lock(topic);
    RETURN QUERY SELECT CASE WHEN numbers IS NULL THEN coalesce(unserved.cause, 'not_numbered')
                             ELSE 'not_numbered' END, waits.arrived_at,
        format('%s arrived on it and %s no number yet: ', CASE waits.arrived WHEN 1 THEN '1 command has'
                                                               ELSE waits.arrived || ' commands have' END,
               CASE waits.arrived WHEN 1 THEN 'has' ELSE 'have' END)
        || CASE WHEN numbers IS NOT NULL THEN 'they are numbered by ' || inturn._describe_backend(numbers)
                WHEN NOT served THEN regexp_replace(unserved.says, '^It is ready, and no', 'no')
                WHEN waits.left_because <> 'locked'
                    THEN 'numbering them fails: ' || inturn._shorten(waits.left_because, 300)
                WHEN waits.left_because = 'locked' THEN 'the key is locked'
                    || coalesce(' by ' || inturn._describe_backend(holder),
                                '; whoever had it locked has let go, and the next pass of an applier numbers them')
                ELSE 'the next pass of an applier numbers them, usually within milliseconds' END,
        CASE WHEN numbers IS NOT NULL
                 THEN format('psql "$INTURN_DSN" -c "SELECT pg_terminate_backend(%s)"  # if it will never end', numbers)
             WHEN NOT served THEN unserved.to_do
             WHEN waits.left_because = 'locked' AND holder IS NOT NULL
                 THEN format('psql "$INTURN_DSN" -c "SELECT pg_terminate_backend(%s)"  # if it will never end', holder)
             ELSE 'inturn status --topic {topic}' END,
        coalesce(unserved.details, '{}')
            || jsonb_build_object('arrived', waits.arrived, 'left_because', waits.left_because);
END
$$;
COMMENT ON FUNCTION inturn._explain_arrived IS 'Internal to why: explains a key whose commands have no number yet.';
