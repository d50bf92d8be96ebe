-- Explains a ready key that is behind others. Internal to why. Takes no locks.
--
-- serving: the appliers that serve its topic, as list_appliers lists them. Counts up to 10,000 keys.
CREATE FUNCTION inturn._explain_queued(c inturn.key_cursor, serving jsonb)
RETURNS TABLE (cause text, says text, to_do text, details jsonb)
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT 'queued',
    format('It is ready and waits for its turn: %s %s ready for longer. Appliers alive: %s, at work: %s',
           CASE WHEN b.ahead > 10000 THEN 'more than 10000' ELSE b.ahead::text END,
           CASE b.ahead WHEN 1 THEN 'key is' ELSE 'keys are' END, b.appliers, b.busy)
    || coalesce('; ' || (b.first->>'applier') || ' since '
                || to_char((b.first->>'since')::timestamptz AT TIME ZONE 'UTC', 'HH24:MI:SS "UTC"')
                || coalesce(', waiting for ' || (b.first->>'waits_for'), ''), ''),
    (SELECT E'inturn status\n' || split_part(k.to_run, E'\n', 1) || '  # another applier, if these are too few'
     FROM inturn.topic t CROSS JOIN LATERAL inturn._kind_of(t.target) k WHERE t.name = c.topic),
    jsonb_build_object('ahead', b.ahead, 'appliers', serving)
FROM (SELECT
    (SELECT count(*) FROM (SELECT FROM inturn.ticket k
                           WHERE k.topic COLLATE "POSIX" = c.topic AND k.ready_at < c.ready_at
                             AND k.ready_at >= coalesce((SELECT w.since FROM inturn._walk_from() w
                                                         WHERE w.topic = c.topic), '-infinity')
                           ORDER BY k.ready_at LIMIT 10001) k) AS ahead,
    jsonb_array_length(serving) AS appliers,
    (SELECT count(*) FROM jsonb_array_elements(serving) s WHERE s->>'doing' = 'applying') AS busy,
    (SELECT s FROM jsonb_array_elements(serving) s WHERE s->>'doing' = 'applying'
     ORDER BY s->>'since' LIMIT 1) AS first) b
$$;
COMMENT ON FUNCTION inturn._explain_queued IS 'Internal to why: explains a ready key that is behind others.';
