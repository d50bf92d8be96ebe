CREATE FUNCTION inturn.pending_commands(topics text[]) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- Counts the commands that a drain has to apply: the committed ones of these topics' ready keys, and those that have no
-- number yet.
-- Takes no locks. Reads all of them: a million take seconds.
SELECT (SELECT count(*) FROM inturn.ticket c
        JOIN inturn.command_log l ON l.topic = c.topic AND l.key = c.key AND l.seq > c.applied_seq
        WHERE c.topic = ANY (topics) AND c.ready_at <= clock_timestamp()
          AND NOT EXISTS (SELECT FROM inturn.topic t WHERE t.name = c.topic AND t.paused_at IS NOT NULL
                          AND clock_timestamp() < coalesce(t.paused_until, 'infinity')))
     + (SELECT count(*) FROM inturn.intake i WHERE i.topic = ANY (topics))
$$;
COMMENT ON FUNCTION inturn.pending_commands IS 'Counts the commands of ready keys that are not applied.';
