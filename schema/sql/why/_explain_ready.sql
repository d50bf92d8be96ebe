-- Explains a key that has a next command and that nobody has in hand: its target is refused or does not answer, it is
-- tried again later, no applier is there for it, or it is behind others. Internal to why. Takes no locks.
--
-- A key that only a hint tells of (see _take_hints) is ready as soon as an applier looks at it.
CREATE FUNCTION inturn._explain_ready(c inturn.key_cursor, t inturn.topic, next inturn.command_log)
RETURNS TABLE (cause text, since timestamptz, says text, to_do text, details jsonb)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    failed constant text := format('Its next command, %s, %s: %s', inturn._name_command(next), CASE
        WHEN c.attempts > 0 THEN format('failed at attempt %s of %s', c.attempts, t.max_attempts)
        ELSE 'was put off, which counts as no attempt' END, inturn._shorten(c.last_error, 200));
    -- What else is to be said of a key that is ready: of its last attempt.
    last constant text := CASE WHEN c.attempts > 0 THEN '. ' || failed
                               ELSE '' END || CASE WHEN c.claimed_by IS NULL THEN '' ELSE
        format('. The lease of %s ran out at %s: the claim that takes the key %s, unless it is heard of before',
               inturn._describe_lease(c),
               to_char(c.lease_until AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'),
               -- See _lose_lease.
               CASE WHEN c.lost > 1 THEN 'counts that as a failed attempt'
                    ELSE 'takes it alone, and counts no attempt' END) END;
    refused constant record := inturn._target_refusal(t);
    serving jsonb;
    down jsonb;
BEGIN
    c.ready_at := coalesce(c.ready_at, (SELECT min(h.left_at) FROM inturn.wake_hint h
                                        WHERE h.topic = c.topic AND h.key = c.key));
    IF c.ready_at IS NULL THEN
        RETURN QUERY SELECT 'broken', next.created_at,
                            format('It is idle although command %s is pending, which should never be: '
            'please report it', inturn._name_command(next)), 'inturn verify --topic {topic} --key {key}',
            jsonb_build_object('seq', next.seq);
        RETURN;
    ELSIF refused.says IS NOT NULL THEN
        RETURN QUERY SELECT 'target_refused', c.ready_at,
                            upper(left(refused.says, 1)) || substr(refused.says, 2) || last,
            refused.to_do,
            jsonb_build_object('target', t.target, 'owner', t.target_owner);
        RETURN;
    END IF;
    SELECT jsonb_agg(to_jsonb(a) ORDER BY a.applier) FILTER (WHERE a.alive AND inturn._fits(a.revision))
    INTO serving FROM inturn.list_appliers() a WHERE t.name = ANY (a.topics);
    SELECT s.value -> 'down' -> t.name INTO down FROM jsonb_array_elements(serving) s
    WHERE s.value -> 'down' ? t.name ORDER BY s.value -> 'down' -> t.name ->> 'since' LIMIT 1;
    IF down IS NOT NULL THEN
        RETURN QUERY SELECT d.cause, (down ->> 'since')::timestamptz,
                            d.says || CASE WHEN c.attempts > 0 THEN '. ' || failed ELSE '' END,
                            d.to_do, d.details
        FROM inturn._explain_down(t, down) d;
        RETURN;
    ELSIF (c.attempts > 0 OR c.last_error IS NOT NULL) AND c.ready_at > clock_timestamp() THEN
        RETURN QUERY SELECT 'retrying', c.failed_at,
            failed || to_char(c.ready_at AT TIME ZONE 'UTC', '. "It is tried again at" YYYY-MM-DD HH24:MI:SS "UTC"'),
            concat_ws(E'\n', 'inturn show --topic {topic} --error {key}',
                      CASE WHEN c.attempts > 0 THEN 'inturn retry --topic {topic} {key}  # to try it now' END),
            jsonb_build_object('until', c.ready_at, 'error', c.last_error, 'attempts', c.attempts, 'max_attempts',
                               t.max_attempts,
                               'seq', next.seq, 'name', next.name);
        RETURN;
    END IF;
    IF serving IS NULL THEN
        RETURN QUERY SELECT u.cause, c.ready_at, u.says || last, u.to_do, u.details
        FROM inturn._explain_unserved(t) u;
    ELSE
        RETURN QUERY SELECT q.cause, c.ready_at, q.says || last, q.to_do, q.details
        FROM inturn._explain_queued(c, serving) q;
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._explain_ready IS
    'Internal to why: explains a key that has a next command and that nobody has in hand.';
