-- Explains a key whose topic's target does not answer, as an applier has found. Internal to why. Takes no locks.
--
-- down: what that applier says, as in the table applier: since, key (the last one tried) and error.
CREATE FUNCTION inturn._explain_down(t inturn.topic, down jsonb)
RETURNS TABLE (cause text, says text, to_do text, details jsonb)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT 'target_down',
    format('What its commands need does not answer (target %s), since %s. One key at a time is tried until it does, '
           'and no '
           'such try counts as an attempt; the last one tried was %L: %s', t.target,
           to_char((down ->> 'since')::timestamptz AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'),
           down ->> 'key', inturn._shorten(down ->> 'error', 200)),
    'inturn keys --topic {topic} --errors  # what it answered; it goes on by itself once it answers again',
    down || jsonb_build_object('target', t.target)
$$;
COMMENT ON FUNCTION inturn._explain_down IS 'Internal to why: explains a key whose topic''s target does not answer.';
