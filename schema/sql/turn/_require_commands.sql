-- Refuses what an applier reports of commands that are not there: it would move the key past numbers that are still to
-- be appended. Internal to fail and _end_turn_alone. Takes no locks.
--
-- Raises IT032 unless every command from from_seq to to_seq is in the log; to_seq is from_seq - 1 where there is none.
CREATE FUNCTION inturn._require_commands(topic text, key text, from_seq bigint, to_seq bigint) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
BEGIN
    IF to_seq::numeric - from_seq + 1 IS DISTINCT FROM (
        SELECT count(*) FROM inturn.command_log l
        WHERE l.topic = _require_commands.topic AND l.key = _require_commands.key AND l.seq BETWEEN from_seq AND to_seq)
    THEN
        RAISE EXCEPTION USING ERRCODE = 'IT032',
            MESSAGE = format('key %L of topic %L has not all of the commands %s to %s', key, topic, from_seq, to_seq),
            HINT = 'Report what the claim returned.';
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._require_commands IS
    'Internal to the appliers: refuses a report on commands that are not there.';
