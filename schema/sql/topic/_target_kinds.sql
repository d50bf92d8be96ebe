-- Returns the kinds of target: how each is written, and what the command line runs that serves it. Internal. Takes no
-- locks. Qualified, not pinned: it is inlined.
--
-- pattern: a regular expression for the targets of the kind, see _kind_of. written: the same, for people. to_run: with
-- {topic} for the topic.
-- What applies each in Python is in applier/targets.py.
CREATE FUNCTION inturn._target_kinds() RETURNS TABLE (kind text, pattern text, written text, to_run text)
LANGUAGE sql IMMUTABLE
AS $$
VALUES ('python', '^python$', 'python', 'inturn apply --app MODULE:APPLIER --topic {topic}'),
       ('sql', '^sql:.', 'sql:SCHEMA.FUNCTION',
        E'inturn apply --topic {topic}\npsql "$INTURN_DSN" -c "CALL inturn.apply()"  # or in SQL, once'),
       ('http', '^https?://.', 'http://... and https://...', 'inturn apply --topic {topic}')
$$;
COMMENT ON FUNCTION inturn._target_kinds IS 'Internal: the kinds of target.';
