-- Returns when a call of apply begins no further command, so that the session's statement_timeout cancels none that may
-- take longer.
-- Internal to apply. Takes no locks.
--
-- That timeout is for the whole CALL, and the command that it cancels has failed. The call leaves as long before it as
-- the longest timeout of its topics, and a second, because a batch may go on that long; where one has none, at half of
-- the time. At least a tenth of it is for work.
CREATE FUNCTION inturn._leave_at(topics text[]) RETURNS timestamptz
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
SELECT CASE WHEN s.whole > '0' THEN statement_timestamp() + s.whole - least(s.whole * 0.9, (
           SELECT CASE WHEN bool_and(t.timeout IS NOT NULL) THEN max(t.timeout) + '1 s' ELSE s.whole / 2 END
           FROM inturn.topic t WHERE t.name = ANY (topics)))
       ELSE 'infinity' END
FROM (SELECT current_setting('statement_timeout')::interval) s (whole)
$$;
COMMENT ON FUNCTION inturn._leave_at IS
    'Internal to apply: when a call begins no further command, because of the session''s statement_timeout.';
