-- Returns the rows that show a violation, as a JSON array; payloads are left out, errors are cut. Internal to verify.
-- Of each table the first few: turns by their epochs, others by their seq, from lo to hi. Takes no locks.
CREATE FUNCTION inturn._verify_rows(topic text, key text, tables text[], epochs bigint[], lo bigint,
                                    hi bigint) RETURNS jsonb
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
SELECT coalesce(jsonb_agg(jsonb_build_object('table', r.name) || r.content), '[]') FROM (
    SELECT 'key_sequence' AS name, to_jsonb(s) AS content FROM inturn.key_sequence s
    WHERE 'key_sequence' = ANY (tables) AND s.topic = _verify_rows.topic AND s.key = _verify_rows.key
    UNION ALL
    (SELECT 'intake', to_jsonb(i) - 'payload' FROM inturn.intake i
     WHERE 'intake' = ANY (tables) AND i.topic = _verify_rows.topic AND i.key = _verify_rows.key ORDER BY i.id LIMIT 5)
    UNION ALL
    (SELECT 'ticket', to_jsonb(c) FROM inturn.ticket c
     WHERE 'ticket' = ANY (tables) AND c.topic = _verify_rows.topic AND c.key = _verify_rows.key
     ORDER BY c.epoch LIMIT 5)
    UNION ALL
    (SELECT 'key_mark', jsonb_strip_nulls(to_jsonb(m) || jsonb_build_object('last_error', left(m.last_error, 200)))
     FROM inturn.key_mark m
     WHERE 'ticket' = ANY (tables) AND m.topic = _verify_rows.topic AND m.key = _verify_rows.key
     ORDER BY m.epoch LIMIT 5)
    UNION ALL
    (SELECT 'command_log', jsonb_strip_nulls(to_jsonb(l) - 'payload') FROM inturn.command_log l
     WHERE 'command_log' = ANY (tables) AND l.topic = _verify_rows.topic AND l.key = _verify_rows.key
       AND l.seq BETWEEN lo AND hi
     ORDER BY l.seq LIMIT 5)
    UNION ALL
    (SELECT 'turn', jsonb_strip_nulls(to_jsonb(t) || jsonb_build_object('error', left(t.error, 200))) FROM inturn.turn t
     WHERE 'turn' = ANY (tables) AND t.topic = _verify_rows.topic AND t.key = _verify_rows.key
       AND t.epoch = ANY (epochs)
     ORDER BY t.epoch LIMIT 5)
    UNION ALL
    (SELECT 'merge_plan', jsonb_strip_nulls(to_jsonb(m) - 'payload') FROM inturn.merge_plan m
     WHERE 'merge_plan' = ANY (tables) AND m.topic = _verify_rows.topic AND m.key = _verify_rows.key
       AND m.epoch = ANY (epochs) AND m.seq BETWEEN lo AND hi
     ORDER BY m.seq LIMIT 5)
    UNION ALL
    (SELECT 'skip', jsonb_strip_nulls(to_jsonb(k) || jsonb_build_object('reason', left(k.reason, 200)))
     FROM inturn.skip k
     WHERE 'skip' = ANY (tables) AND k.topic = _verify_rows.topic AND k.key = _verify_rows.key
       AND k.seq BETWEEN lo AND hi
     ORDER BY k.seq LIMIT 5)
    UNION ALL
    (SELECT 'operator_action', jsonb_strip_nulls(to_jsonb(a) - 'before' - 'after') FROM inturn.operator_action a
     WHERE 'operator_action' = ANY (tables) AND a.topic = _verify_rows.topic AND a.key = _verify_rows.key
       AND a.seq BETWEEN lo AND hi AND a.action IN ('skip', 'cancel-rest', 'replay', 'amend', 'fill-gap')
     ORDER BY a.id LIMIT 5)) r
$$;
COMMENT ON FUNCTION inturn._verify_rows IS 'Internal to verify: the rows that show a violation.';
