-- Cuts the histories of keys where _find_cuts says, and returns how many commands and turns went. Internal to
-- prune_batch.
--
-- kept_before: a command that has an idempotency key and is younger stays, before the beginning.
-- What an operator did goes with the number that it was about; a replay with the number that it got; what was about no
-- number, or is pending still, by its time. What was amended is known as long as its command is kept: a repeat is
-- compared with what the caller gave. The caller holds the keys' rows in key_sequence. Locks nothing that anybody
-- else locks.
CREATE FUNCTION inturn._cut_history(
    topic text, cuts inturn._cut[], done_before timestamptz, kept_before timestamptz, OUT commands bigint,
    OUT turns bigint
)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
AS $$
DECLARE
    cut inturn._cut;
    first_key constant text := (SELECT min(c.key) FROM unnest(cuts) c);
    last_key constant text := (SELECT max(c.key) FROM unnest(cuts) c);
    -- Hardly a topic has any of these, and a statement a key costs more than all the rest.
    any_skip constant boolean := EXISTS (
        SELECT FROM inturn.skip k WHERE k.topic = _cut_history.topic AND k.key BETWEEN first_key AND last_key);
    any_plan constant boolean := EXISTS (
        SELECT FROM inturn.merge_plan m WHERE m.topic = _cut_history.topic AND m.key BETWEEN first_key AND last_key);
    any_action constant boolean := EXISTS (
        SELECT FROM inturn.operator_action a
        WHERE a.topic = _cut_history.topic AND a.key BETWEEN first_key AND last_key);
BEGIN
    commands := inturn._cut_commands(topic, cuts, kept_before);
    turns := inturn._cut_turns(topic, cuts);
    FOREACH cut IN ARRAY cuts LOOP
        IF any_skip THEN
            DELETE FROM inturn.skip k
            WHERE k.topic = _cut_history.topic AND k.key = cut.key AND k.seq >= cut.from_seq AND k.seq < cut.seq;
        END IF;
        IF any_plan THEN
            DELETE FROM inturn.merge_plan m
            WHERE m.topic = _cut_history.topic AND m.key = cut.key AND m.seq < cut.seq;
        END IF;
        IF any_action THEN
            DELETE FROM inturn.operator_action a
            WHERE a.topic = _cut_history.topic AND a.key = cut.key AND CASE
                WHEN a.action = 'replay' THEN (a.after ->> 'seq')::bigint < cut.seq
                WHEN a.action = 'amend' THEN a.seq < cut.seq AND (
                    SELECT true FROM inturn.command_log l
                    WHERE l.topic = a.topic AND l.key = a.key AND l.seq = a.seq) IS NULL
                WHEN a.action IN ('skip', 'cancel-rest', 'fill-gap') THEN a.seq < cut.seq
                ELSE a.acted_at < done_before END;
        END IF;
        UPDATE inturn.key_sequence s SET history_seq = cut.seq, history_epoch = cut.epoch, kept_seq = (
            SELECT l.seq FROM inturn.command_log l
            WHERE l.topic = s.topic AND l.key = s.key AND l.seq < cut.seq
              AND l.seq >= coalesce(cut.kept_to + 1, cut.kept_from, cut.from_seq) ORDER BY l.seq LIMIT 1)
        WHERE s.ctid = (SELECT n.ctid FROM inturn.key_sequence n
                        WHERE n.topic = _cut_history.topic AND n.key >= cut.key AND n.key <= cut.key
                        ORDER BY n.key DESC LIMIT 1);
    END LOOP;
END
$$;
COMMENT ON FUNCTION inturn._cut_history IS 'Internal to prune_batch: cuts the histories of keys.';
