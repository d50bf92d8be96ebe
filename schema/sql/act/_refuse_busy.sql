-- Says who has a key in hand, to an operator who has waited long enough. Internal to _lock_cursor. Takes no locks.
-- Raises IT042.
CREATE FUNCTION inturn._refuse_busy(topic text, key text) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    holder text;
BEGIN
    SELECT coalesce(
        (SELECT inturn._describe_locker(l.locker, l.relation)
         FROM inturn._find_locker(_refuse_busy.topic, _refuse_busy.key) l),
        CASE WHEN c.lease_until > clock_timestamp()
             THEN format('leased by %s until %s', c.claimed_by,
                         to_char(c.lease_until AT TIME ZONE 'UTC', 'HH24:MI:SS "UTC"')) END,
        'nobody any more') INTO holder
    FROM inturn._find_cursor(_refuse_busy.topic, _refuse_busy.key) c;
    RAISE EXCEPTION USING ERRCODE = 'IT042',
        MESSAGE = format('key %L of topic %L is in hand: %s', key, topic, holder),
        HINT = format('Nothing was changed. Waited for %s; try again%s.', current_setting('lock_timeout'),
                      CASE WHEN holder LIKE 'leased%' THEN ' when the lease is over'
                           WHEN holder LIKE 'the prepared transaction %'
                               THEN ', or end it: COMMIT PREPARED, ROLLBACK PREPARED'
                           ELSE ', or end that session: SELECT pg_terminate_backend(PID)' END);
END
$$;
COMMENT ON FUNCTION inturn._refuse_busy IS 'Internal to _lock_cursor: says who has a key in hand.';
