CREATE FUNCTION inturn.timeline(of_topic text, of_key text, max_entries integer DEFAULT 20)
RETURNS TABLE (
    at timestamptz, kind text, epoch bigint, from_seq bigint, to_seq bigint, what text, done_by text, os_user text,
    acting_as text, started_at timestamptz, says text, before jsonb, after jsonb
)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
-- Returns the latest turns of a key, what they merged, and what operators did to it, by time, the newest first. Takes
-- no locks.
--
-- kind turn: epoch, from_seq and to_seq as in turn, what is its outcome, done_by the applier, says the error.
-- kind history, the last entry of a key whose history was pruned: it begins at from_seq, after the turn epoch.
-- kind merge: from_seq to to_seq were merged in the turn epoch; what is by which rules, says what became of them.
-- kind action: from_seq is the number it was about, what is the action, done_by the login, says the reason.
-- Raises IT014 when the topic is granted to other operators only.
SELECT inturn._require_grant(of_topic, 'operator');
SELECT * FROM (
    (SELECT t.finished_at AS at, 'turn' AS kind, t.epoch, t.from_seq, t.to_seq, t.outcome, t.applier,
            NULL::text, NULL::text, t.started_at, t.error, NULL::jsonb, NULL::jsonb
     FROM inturn.turn t WHERE t.topic = of_topic AND t.key = of_key AND t.outcome <> 'idle'
     ORDER BY t.epoch DESC LIMIT CASE WHEN max_entries < 0 THEN 0 ELSE max_entries END)
    UNION ALL
    (SELECT max(m.merged_at), 'merge', m.epoch, m.from_seq, m.to_seq, string_agg(DISTINCT m.rule, ', ' ORDER BY m.rule),
     max(m.applier),
            NULL, NULL, NULL, CASE WHEN max(m.into_seq) IS NULL THEN 'became nothing'
                ELSE format('took effect as %s%s', max(m.into_seq), ' ' || max(m.name)) END, NULL, NULL
     FROM inturn.merge m WHERE m.topic = of_topic AND m.key = of_key
       AND m.epoch >= (SELECT min(u.epoch) FROM (
           SELECT t.epoch FROM inturn.turn t WHERE t.topic = of_topic AND t.key = of_key
           ORDER BY t.epoch DESC LIMIT CASE WHEN max_entries < 0 THEN 0 ELSE max_entries END) u)
     GROUP BY m.epoch, m.from_seq, m.to_seq
         ORDER BY m.epoch DESC, m.from_seq DESC LIMIT CASE WHEN max_entries < 0 THEN 0 ELSE max_entries END)
    UNION ALL
    (SELECT a.acted_at, 'action', NULL, a.seq, NULL, a.action, a.db_user,
            a.os_user, a.acting_as, NULL, a.reason, a.before, a.after
     FROM inturn.operator_action a WHERE a.topic = of_topic AND a.key = of_key
     ORDER BY a.id DESC LIMIT CASE WHEN max_entries < 0 THEN 0 ELSE max_entries END)
    UNION ALL
    (SELECT t.finished_at, 'history', s.history_epoch, s.history_seq, NULL, 'begins', NULL,
            NULL, NULL, NULL, 'what came before was pruned', NULL, NULL
     FROM inturn.key_sequence s
     JOIN inturn.turn t ON t.topic = s.topic AND t.key = s.key AND t.epoch = s.history_epoch
     WHERE s.topic = of_topic AND s.key = of_key)
) e ORDER BY e.kind = 'history', e.at DESC, e.epoch DESC, e.kind DESC, e.from_seq DESC
    LIMIT CASE WHEN max_entries < 0 THEN 0 ELSE max_entries END
$$;
COMMENT ON FUNCTION inturn.timeline IS 'The latest turns of a key and what operators did to it, merged by time.';
