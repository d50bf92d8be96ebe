CREATE FUNCTION inturn.replay(topic text, key text, seq bigint, reason text) RETURNS inturn.operator_action
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
-- Appends a skipped or applied command again, at the end of its key; returns the recorded action, whose after has the
-- new seq. Its old place stays as it is.
--
-- Works once for every seq: to do it again, replay the new one. The new command gets its number at once, also in a
-- topic that numbers on arrival: commands without a number come after it.
-- Locks: what append locks.
-- Raises IT041 when seq is pending, not there, or was replayed before, or callers number; IT043 without a reason;
-- IT014; and what append raises.
DECLARE
    again constant text := 'inturn.replay:' || seq;
    applied bigint;
    numbering constant text := (SELECT t.numbering FROM inturn.topic t WHERE t.name = replay.topic);
    command inturn.command_log;
    replayed bigint;
BEGIN
    PERFORM inturn._require_reason('replay', reason);
    -- What it refuses says what others did to the key, and why.
    PERFORM inturn._require_grant(topic, 'operator');
    IF numbering = 'given' THEN
        PERFORM inturn._refuse_action(topic, key, 'has its numbers from its callers, and a replay would need one of '
                                                  'theirs',
            'Have the caller append the command again, under its next number.');
    END IF;
    -- The lock under which the number is taken; it orders two operators too.
    PERFORM FROM inturn.key_sequence s WHERE s.topic = replay.topic AND s.key >= replay.key AND s.key <= replay.key
    ORDER BY s.key DESC LIMIT 1 FOR UPDATE;
    SELECT c.applied_seq INTO applied FROM inturn._find_cursor(replay.topic, replay.key) c;
    SELECT * INTO command FROM inturn.command_log l
    WHERE l.topic = replay.topic AND l.key = replay.key AND l.seq = replay.seq;
    SELECT l.seq INTO replayed FROM inturn.command_log l
    WHERE l.topic = replay.topic AND l.key = replay.key AND l.idempotency_key = again;
    IF command.seq IS NULL THEN
        PERFORM inturn._refuse_action(topic, key, inturn._no_command(topic, key, seq),
                                      'See its commands with inturn show.');
    ELSIF seq > applied THEN
        PERFORM inturn._refuse_action(topic, key, format('has command %s still pending: it will be applied in its turn',
                                                         seq),
            'Only what was applied or skipped can be replayed.');
    ELSIF replayed IS NOT NULL THEN
        PERFORM inturn._refuse_action(topic, key, format('had command %s replayed before, as %s', seq, replayed),
            format('To apply it once more, replay %s.', replayed));
    END IF;
    PERFORM inturn._refuse_command(topic, key, command.name, command.payload, NULL);
    -- Not by append, which refuses such an idempotency key. Under the lock nobody else numbers the key, nor an applier.
    replayed := inturn._append_on_snapshot(topic, key, applied, command.name, command.payload, again);
    IF current_setting('transaction_isolation') = 'read committed' THEN
        PERFORM inturn._look_at_key(topic, key);
    END IF;
    RETURN inturn._record_action(topic, key, seq, 'replay', reason,
                                 jsonb_build_object('seq', seq, 'name', command.name),
                                jsonb_build_object('seq', replayed, 'name', command.name));
END
$$;
COMMENT ON FUNCTION inturn.replay IS 'Appends a skipped or applied command again, at the end of its key.';
