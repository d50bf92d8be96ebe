CREATE FUNCTION inturn.apply_batch(
    topic text, since timestamptz, max_keys integer, applier text, take_lost boolean DEFAULT true,
    OUT keys integer, OUT commands bigint, OUT failures integer, OUT redo boolean, OUT hand timestamptz,
    OUT skipped bigint, OUT target_time interval, OUT lost boolean
)
LANGUAGE plpgsql VOLATILE
-- No SET clauses: they would reach into the target.
AS $$
-- Claims up to max_keys ready keys of a topic with a SQL target, applies their next commands, and ends the turns.
-- The caller commits at once afterwards: finish has locked the keys against their callers.
--
-- Begins no further command once it has lasted a second, so that who waits for a key (see _lock_cursor) waits for the
-- command in hand; keys that it has not begun stay ready as they were.
-- failures: commands that failed; skipped: commands that were passed over, because they asked for it or attempts ran out.
-- target_time: how long the target was at work.
-- since: as in claim; pass the returned hand to the next call. keys = 0: none was ready, there is no hand.
-- redo: a command failed while several keys shared the transaction. Nothing was changed; commit, then call with
-- max_keys => 1 for as many keys, so that a failure is one key's and a deadlock between handlers cannot recur.
-- take_lost: false, lost: an applier was lost with one of the keys in hand (see claim). Nothing was changed, as with redo.
-- Locks: tickets (claim), what the target locks, rows in key_sequence (finish). Waits only in the target.
-- Raises IT001, IT012 for a topic without a SQL target, and what claim, finish and fail raise. A target that is not
-- there fails the commands, as one that raises does: the other topics go on.
DECLARE
    settings inturn.topic;
    claimed record;
    fresh record;
    began_at timestamptz; leave_at timestamptz; cut boolean;
    done_keys text[]; done_seqs bigint[];
    step_by_step boolean := false;
    turn record;
    failed_keys text[] := '{}';
BEGIN
    keys := 0; commands := 0; failures := 0; redo := false; skipped := 0; target_time := '0'; lost := false;
    settings := inturn._sql_topic(topic);

    SELECT array_agg(c.key) AS keys, array_agg(c.applied_seq) AS applied_seqs, array_agg(c.epoch) AS epochs,
           array_agg(c.applied_seq + 1) AS from_seqs, array_agg(c.attempts) AS attempts, max(c.attempts) > 0 AS any_failed,
           max(c.ready_at) AS ready_at, bool_or(c.lost) AS lost
    INTO claimed FROM inturn.claim(topic, since, max_keys) c;
    IF claimed.keys IS NULL THEN
        RETURN;
    END IF;
    keys := cardinality(claimed.keys);
    hand := claimed.ready_at;
    IF claimed.lost AND NOT take_lost THEN
        redo := true; lost := true;
        RETURN;
    END IF;

    IF settings.merges THEN
        failed_keys := inturn._plan_batch(settings, claimed.keys, claimed.epochs, claimed.applied_seqs, claimed.attempts,
                                         CASE WHEN claimed.lost THEN 1 ELSE settings.batch_commands END, applier);
        failures := cardinality(failed_keys);
        SELECT array_agg(c.key) AS keys, array_agg(c.applied_seq) AS applied_seqs, array_agg(c.epoch) AS epochs,
               array_agg(c.applied_seq + 1) AS from_seqs, array_agg(c.attempts) AS attempts, max(c.attempts) > 0 AS any_failed
        INTO claimed FROM unnest(claimed.keys, claimed.applied_seqs, claimed.epochs, claimed.attempts) c (key, applied_seq, epoch, attempts)
        WHERE c.key <> ALL (failed_keys);
        redo := coalesce(current_setting('inturn.merge_cancelled', true) = 'on', false);
        IF claimed.keys IS NULL OR redo THEN
            RETURN;
        END IF;
    END IF;
    began_at := clock_timestamp();
    leave_at := began_at + interval '1 s';
    fresh := claimed;
    IF claimed.any_failed THEN
        SELECT array_agg(c.key) AS keys, array_agg(c.applied_seq) AS applied_seqs, array_agg(c.epoch) AS epochs
        INTO fresh FROM unnest(claimed.keys, claimed.applied_seqs, claimed.attempts, claimed.epochs) c (key, applied_seq, attempts, epoch)
        WHERE c.attempts = 0;
    END IF;
    BEGIN
        EXECUTE inturn._target_query(topic, settings.target, settings.merges) INTO done_seqs, commands
        USING topic, fresh.keys, fresh.applied_seqs, settings.batch_commands, 1, leave_at, fresh.epochs;
        IF commands IS NULL THEN
            RAISE internal_error USING MESSAGE = 'the clock was set back during a turn';
        END IF;
        IF claimed.any_failed THEN
            PERFORM inturn._check_effects(); -- those that are tried again come after, each for itself
        ELSE
            SET CONSTRAINTS ALL IMMEDIATE;
        END IF;
    EXCEPTION WHEN assert_failure OR OTHERS THEN
        IF cardinality(fresh.keys) > 1 THEN
            redo := true;
            RETURN;
        END IF;
        step_by_step := true;
        commands := 0; done_seqs := NULL;
        PERFORM inturn._save_merges(topic, fresh.keys[1], fresh.epochs[1], NULL) WHERE settings.merges;
    END;
    cut := clock_timestamp() >= leave_at;
    IF NOT claimed.any_failed AND NOT step_by_step AND NOT cut THEN
        -- Nearly always: every key was begun, and none failed.
        target_time := clock_timestamp() - began_at;
        PERFORM inturn.finish(topic, claimed.keys, claimed.epochs, claimed.from_seqs, done_seqs, applier);
        RETURN;
    END IF;
    done_keys := CASE WHEN done_seqs IS NOT NULL THEN fresh.keys ELSE '{}' END;
    FOR i IN 1 .. cardinality(claimed.keys) LOOP
        CONTINUE WHEN claimed.attempts[i] = 0 AND NOT step_by_step;
        CONTINUE WHEN claimed.attempts[i] > 0 AND clock_timestamp() >= leave_at;
        SELECT * INTO turn FROM inturn._apply_key(
            topic, claimed.keys[i], claimed.epochs[i], claimed.applied_seqs[i], claimed.attempts[i] + 1,
            CASE WHEN claimed.attempts[i] > 0 THEN 1 ELSE settings.batch_commands END,
            settings.target, applier);
        commands := commands + turn.done_seq - claimed.applied_seqs[i];
        failures := failures + turn.failures;
        skipped := skipped + turn.skipped;
        IF turn.outcome IS NOT NULL THEN
            failed_keys := failed_keys || claimed.keys[i];
        ELSE
            done_keys := done_keys || claimed.keys[i];
            done_seqs := done_seqs || turn.done_seq;
        END IF;
    END LOOP;

    cut := clock_timestamp() >= leave_at;
    target_time := clock_timestamp() - began_at;
    PERFORM inturn.finish(topic, array_agg(c.key), array_agg(c.epoch), array_agg(c.applied_seq + 1),
                          array_agg(coalesce(d.seq, c.applied_seq)), applier)
    FROM unnest(claimed.keys, claimed.epochs, claimed.applied_seqs) c (key, epoch, applied_seq)
    LEFT JOIN unnest(done_keys, done_seqs) d (key, seq) ON d.key = c.key
    WHERE c.key <> ALL (failed_keys) AND NOT (cut AND coalesce(d.seq, c.applied_seq) = c.applied_seq)
    HAVING count(*) > 0;
END
$$;
COMMENT ON FUNCTION inturn.apply_batch IS 'Claims ready keys of a topic with a SQL target, applies their next commands, ends the turns.';
