-- Explains a key that an applier has by lease, while that runs; nothing of any other. Internal to why. Takes no locks.
--
-- next: the key's next command; its seq is NULL when nothing is pending.
CREATE FUNCTION inturn._explain_lease(c inturn.key_cursor, t inturn.topic, next inturn.command_log)
RETURNS TABLE (cause text, since timestamptz, says text, to_do text, details jsonb)
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT 'leased', c.claimed_at,
    format('%s has it by lease until %s, longer if it renews it, and %s%s', inturn._describe_lease(c),
           to_char(c.lease_until AT TIME ZONE 'UTC', 'HH24:MI:SS "UTC"'),
           CASE WHEN next.seq IS NULL THEN 'has recorded every command it can apply'
                ELSE format('is at command %s, attempt %s of %s', inturn._name_command(next), c.attempts + 1,
                            t.max_attempts) END,
           CASE WHEN a.alive IS FALSE
                THEN to_char(a.seen_at AT TIME ZONE 'UTC',
                             '. "That applier is gone: it was last seen at" YYYY-MM-DD HH24:MI:SS "UTC"')
                     || '. Any other takes the key when the lease is over'
                ELSE '' END),
    concat_ws(E'\n', 'inturn status  # what the appliers are doing',
              -- Whoever announces itself is known to be there, and has short leases.
              CASE WHEN a.alive IS NOT TRUE OR a.host IS NULL
                   THEN format('psql "$INTURN_DSN" -c %s  # by an applier''s login, if it is gone',
                               inturn._release_word(c.topic, c.key, c.epoch)) END),
    jsonb_build_object('until', c.lease_until, 'applier', c.claimed_by, 'host', a.host, 'pid', a.pid, 'alive', a.alive,
                       'seen_at', a.seen_at, 'seq', c.applied_seq + 1, 'name', next.name, 'attempt', c.attempts + 1,
                       'max_attempts', t.max_attempts, 'epoch', c.epoch)
FROM (SELECT) one LEFT JOIN inturn.list_appliers() a ON a.applier = c.claimed_by AND a.seen_at IS NOT NULL
WHERE c.lease_until > clock_timestamp()
$$;
COMMENT ON FUNCTION inturn._explain_lease IS 'Internal to why: explains a key that an applier has by lease.';
