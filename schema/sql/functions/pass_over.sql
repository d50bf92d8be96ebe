-- Passes over the commands from_seq to to_seq of a key, an entry in skip each; returns the last. Internal to fail and
-- the operators' functions.
--
-- to_seq: NULL for all that are committed now, and the missing ones between them where callers number. They stay in the log. The caller holds the key's row in key_cursor and
-- moves its cursor; from_seq is its applied_seq + 1. Takes no other locks.
CREATE FUNCTION inturn.pass_over(
    topic text, key text, from_seq bigint, to_seq bigint, epoch bigint, skipped_by text, reason text
) RETURNS bigint
LANGUAGE sql VOLATILE
SET enable_seqscan = off
AS $$
WITH passed AS (
    INSERT INTO inturn.skip (topic, key, seq, epoch, skipped_by, reason)
    SELECT pass_over.topic, pass_over.key, s.seq, pass_over.epoch, pass_over.skipped_by, left(pass_over.reason, 8000)
    FROM generate_series(from_seq, (
        SELECT l.seq FROM inturn.command_log l
        WHERE l.topic = pass_over.topic AND l.key = pass_over.key AND l.seq >= from_seq AND (l.seq = to_seq OR to_seq IS NULL)
        ORDER BY l.seq DESC LIMIT 1)) s (seq)
    RETURNING seq)
SELECT max(passed.seq) FROM passed
$$;
COMMENT ON FUNCTION inturn.pass_over IS 'Internal to fail and the operators'' functions: passes over commands, an entry in skip each.';
