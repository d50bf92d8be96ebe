-- Skips the commands from_seq to to_seq of a key, an entry in skip each; returns the last. Internal to fail and
-- the operators' functions.
--
-- to_seq: NULL for all that are committed now, and the missing ones between them where callers number. They stay in the
-- log. The caller has locked the key's ticket and moves the key; from_seq is its applied_seq + 1. Takes no other
-- locks.
CREATE FUNCTION inturn._pass_over(
    topic text, key text, from_seq bigint, to_seq bigint, epoch bigint, skipped_by text, reason text
) RETURNS bigint
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
WITH passed AS (
    INSERT INTO inturn.skip (topic, key, seq, epoch, skipped_by, reason)
    SELECT _pass_over.topic, _pass_over.key, s.seq, _pass_over.epoch, _pass_over.skipped_by,
           left(_pass_over.reason, 8000)
    FROM generate_series(from_seq, (
        SELECT l.seq FROM inturn.command_log l
        WHERE l.topic = _pass_over.topic AND l.key = _pass_over.key AND l.seq >= from_seq
          AND (l.seq = to_seq OR to_seq IS NULL)
        ORDER BY l.seq DESC LIMIT 1)) s (seq)
    RETURNING seq)
SELECT max(passed.seq) FROM passed
$$;
COMMENT ON FUNCTION inturn._pass_over IS
    'Internal to fail and the operators'' functions: skips commands, an entry in skip each.';
