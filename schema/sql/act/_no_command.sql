-- Says that a key has no such command, and whether it may have had it before its history begins. Internal to replay and
-- amend.
-- Takes no locks.
CREATE FUNCTION inturn._no_command(topic text, key text, seq bigint) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT format('has no command %s%s', seq, (
    SELECT format(' any more: its history begins at %s', s.history_seq) FROM inturn.key_sequence s
    WHERE s.topic = _no_command.topic AND s.key = _no_command.key AND _no_command.seq < s.history_seq))
$$;
COMMENT ON FUNCTION inturn._no_command IS 'Internal to the operators'' functions: says that a key has no such command.';
