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
    backend integer; -- the holder's; NULL: it is not a session, or cannot be seen
    lease text;
BEGIN
    SELECT inturn._describe_locker(l.locker, l.relation), inturn._lock_holder(l.locker, l.relation)
    INTO holder, backend FROM inturn._find_locker(_refuse_busy.topic, _refuse_busy.key) l;
    SELECT format('leased by %s until %s', c.claimed_by,
                  to_char(c.lease_until AT TIME ZONE 'UTC', 'HH24:MI:SS "UTC"')) INTO lease
    FROM inturn._find_cursor(_refuse_busy.topic, _refuse_busy.key) c WHERE c.lease_until > clock_timestamp();
    RAISE EXCEPTION USING ERRCODE = 'IT042',
        MESSAGE = format('key %L of topic %L %s', key, topic,
                         coalesce('is in hand: ' || coalesce(holder, lease), 'was in hand until just now')),
        HINT = format('Nothing was changed. Waited for %s; try again%s.', current_setting('lock_timeout'),
                      CASE WHEN backend IS NOT NULL
                               THEN format(', or end that session: SELECT pg_terminate_backend(%s)', backend)
                           WHEN holder IS NOT NULL THEN ', or end it: COMMIT PREPARED, ROLLBACK PREPARED'
                           WHEN lease IS NOT NULL THEN ' when the lease is over' ELSE '' END);
END
$$;
COMMENT ON FUNCTION inturn._refuse_busy IS 'Internal to _lock_cursor: says who has a key in hand.';
