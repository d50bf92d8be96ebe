CREATE FUNCTION inturn.apply_batch(
    topic text, since timestamptz, max_keys integer, applier text, take_lost boolean DEFAULT true,
    judged boolean DEFAULT false,
    OUT keys integer, OUT commands bigint, OUT failures integer, OUT redo boolean, OUT hand timestamptz,
    OUT skipped bigint, OUT target_time interval, OUT lost boolean,
    OUT outages jsonb, OUT answered boolean, OUT cancellation text
)
LANGUAGE plpgsql VOLATILE
-- Neither pinned nor with other settings, which would reach into the target: all is qualified.
AS $$
-- Claims up to max_keys ready keys of a topic with a SQL target, applies their next commands, and ends the turns.
-- The caller commits at once afterwards: finish has locked the keys against their callers.
--
-- Begins no further command once it has lasted a second, so that whoever waits for a key (see _lock_cursor) waits only
-- for the command in hand, or earlier, see _begin_until; keys that it has not begun stay ready as they were.
-- failures: commands that failed; skipped: commands that were skipped, because they asked for it or attempts ran
-- out.
-- target_time: how long the target was at work.
-- since: as in claim; pass the returned hand to the next call. keys = 0: none was ready, there is no hand.
-- redo: a command failed while several keys shared the transaction, or one of them took long at its last attempt.
-- Nothing was changed; commit, then call with max_keys => 1 for as many keys, so that a failure is one key's, a
-- deadlock between handlers cannot recur, and no key waits for its commit until a slow one has failed again.
-- take_lost: false, lost: an applier was lost with one of the keys in hand (see claim), the first of which became ready
-- at hand. Nothing was changed, as with redo.
-- outages: of each failure that looks like an outage of what commands need (see _outage_of), key, epoch, from_seq,
-- failed_seq and error. judged: they are for the caller to record by fail, in this transaction; otherwise they are
-- recorded. answered: a command failed for a reason of its own.
-- A cancelled query, if it meets a command that is being tried again, has that command fail, and the batch begins no
-- further one: cancellation is what it says. Otherwise it is raised.
-- Locks: tickets (claim), what the target locks, rows in key_sequence (finish). Waits only in the target.
-- Raises IT001, IT012 for a topic without a SQL target, IT013 where the target of ready keys, or a function that merges
-- their commands, belongs to somebody else than when it was set (then nothing was claimed), and what claim, finish and
-- fail raise. A target that is not there fails the commands, as one that raises does: the other topics go on.
DECLARE
    settings constant inturn.topic := inturn._sql_topic(topic);
    target pg_catalog.regprocedure; me constant pg_catalog.name := current_user;
    claimed pg_catalog.record;
    fresh pg_catalog.record;
    began_at timestamp with time zone; leave_at timestamp with time zone; cut boolean;
    done_keys pg_catalog.text[]; done_seqs bigint[]; called pg_catalog.text[];
    step_by_step boolean := false; turn pg_catalog.record; failed_keys pg_catalog.text[] := '{}';
BEGIN
    keys := 0; commands := 0; failures := 0; redo := false; skipped := 0; target_time := '0'; lost := false;
    outages := '[]'; answered := false;
    SELECT pg_catalog.array_agg(c.key) AS keys, pg_catalog.array_agg(c.applied_seq) AS applied_seqs,
           pg_catalog.array_agg(c.epoch) AS epochs,
           pg_catalog.array_agg(c.applied_seq OPERATOR(pg_catalog.+) 1) AS from_seqs,
           pg_catalog.array_agg(c.attempts) AS attempts,
           pg_catalog.max(c.attempts) OPERATOR(pg_catalog.>) 0 AS any_failed,
           pg_catalog.min(c.ready_at) AS first_at, pg_catalog.max(c.ready_at) AS ready_at,
           pg_catalog.bool_or(c.lost) AS lost, pg_catalog.min(c.ready_at) FILTER (WHERE c.lost) AS lost_at
    INTO claimed FROM inturn.claim(topic, since, max_keys) c;
    IF claimed.keys IS NULL THEN
        RETURN;
    END IF;
    target := inturn._require_target(settings); -- once, as late as may be; refused, the claim goes too
    keys := pg_catalog.cardinality(claimed.keys); hand := claimed.ready_at;
    IF claimed.lost AND NOT take_lost THEN
        redo := true; lost := true; hand := claimed.lost_at;
        RETURN;
    ELSIF claimed.any_failed AND keys OPERATOR(pg_catalog.>) 1
        AND inturn._took_long(topic, claimed.keys, claimed.epochs, claimed.attempts) THEN
        redo := true; RETURN;
    END IF;

    IF settings.merges THEN
        failed_keys := inturn._plan_batch(
            settings, claimed.keys, claimed.epochs, claimed.applied_seqs, claimed.attempts,
            CASE WHEN claimed.lost THEN 1 ELSE settings.batch_commands END, applier);
        failures := pg_catalog.cardinality(failed_keys);
        SELECT pg_catalog.array_agg(c.key) AS keys, pg_catalog.array_agg(c.applied_seq) AS applied_seqs,
               pg_catalog.array_agg(c.epoch) AS epochs,
               pg_catalog.array_agg(c.applied_seq OPERATOR(pg_catalog.+) 1) AS from_seqs,
               pg_catalog.array_agg(c.attempts) AS attempts,
               pg_catalog.max(c.attempts) OPERATOR(pg_catalog.>) 0 AS any_failed,
               claimed.first_at AS first_at, claimed.ready_at AS ready_at
        INTO claimed
        FROM ROWS FROM (pg_catalog.unnest(claimed.keys), pg_catalog.unnest(claimed.applied_seqs),
                        pg_catalog.unnest(claimed.epochs), pg_catalog.unnest(claimed.attempts))
            c (key, applied_seq, epoch, attempts)
        WHERE c.key OPERATOR(pg_catalog.<>) ALL (failed_keys);
        redo := coalesce(pg_catalog.current_setting('inturn.merge_cancelled', true) -- see _call_merge
                         OPERATOR(pg_catalog.=) pg_catalog.now()::pg_catalog.text, false);
        IF claimed.keys IS NULL OR redo THEN
            RETURN;
        END IF;
    END IF;
    began_at := pg_catalog.clock_timestamp();
    leave_at := inturn._begin_until();
    fresh := claimed;
    IF claimed.any_failed THEN
        SELECT pg_catalog.array_agg(c.key) AS keys, pg_catalog.array_agg(c.applied_seq) AS applied_seqs,
               pg_catalog.array_agg(c.epoch) AS epochs
        INTO fresh
        FROM ROWS FROM (pg_catalog.unnest(claimed.keys), pg_catalog.unnest(claimed.applied_seqs),
                        pg_catalog.unnest(claimed.epochs), pg_catalog.unnest(claimed.attempts))
            c (key, applied_seq, epoch, attempts)
        WHERE c.attempts OPERATOR(pg_catalog.=) 0;
    END IF;
    BEGIN
        IF settings.merges THEN
            EXECUTE inturn._target_query(settings, '_turn_commands', target) INTO called, done_seqs, commands
            USING topic, fresh.keys, fresh.epochs, fresh.applied_seqs, settings.batch_commands, 1, leave_at;
        ELSE
            EXECUTE inturn._target_query(settings, '_batch_commands', target) INTO called, done_seqs, commands
            USING topic, fresh.keys, claimed.first_at, claimed.ready_at, settings.batch_commands, 1, leave_at;
        END IF;
        SELECT * INTO done_seqs, commands FROM inturn._reached(fresh.keys, fresh.applied_seqs, called, done_seqs);
        IF commands IS NULL THEN
            RAISE internal_error USING MESSAGE = 'the clock was set back during a turn';
        END IF;
        IF current_user OPERATOR(pg_catalog.<>) me
            OR pg_catalog.current_setting('transaction_read_only') OPERATOR(pg_catalog.=) 'on' THEN
            RAISE read_only_sql_transaction; -- one by one, _apply_key says what, and by which command
        ELSIF claimed.any_failed THEN
            PERFORM inturn._check_effects(); -- those that are tried again come after, each for itself
        ELSE
            SET CONSTRAINTS ALL IMMEDIATE;
        END IF;
    EXCEPTION WHEN assert_failure OR OTHERS THEN
        IF pg_catalog.cardinality(fresh.keys) OPERATOR(pg_catalog.>) 1 THEN
            redo := true; RETURN;
        END IF;
        step_by_step := true; commands := 0; done_seqs := NULL;
        PERFORM inturn._save_merges(topic, fresh.keys[1], fresh.epochs[1], NULL) WHERE settings.merges;
    END;
    -- Or as many as are read at a time.
    cut := pg_catalog.clock_timestamp() OPERATOR(pg_catalog.>=) leave_at OR commands OPERATOR(pg_catalog.>=) 10000;
    IF NOT claimed.any_failed AND NOT step_by_step AND NOT cut THEN
        -- Nearly always: every key was begun, and none failed.
        target_time := pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) began_at;
        PERFORM inturn.finish(topic, claimed.keys, claimed.epochs, claimed.from_seqs, done_seqs, applier);
        RETURN;
    END IF;
    done_keys := CASE WHEN done_seqs IS NOT NULL THEN fresh.keys ELSE '{}' END;
    FOR i IN 1 .. pg_catalog.cardinality(claimed.keys) LOOP
        CONTINUE WHEN claimed.attempts[i] OPERATOR(pg_catalog.=) 0 AND NOT step_by_step;
        CONTINUE WHEN claimed.attempts[i] OPERATOR(pg_catalog.>) 0
            AND (i OPERATOR(pg_catalog.>) 1 OR commands OPERATOR(pg_catalog.>) 0)
            AND pg_catalog.clock_timestamp() OPERATOR(pg_catalog.>=) leave_at;
        SELECT * INTO turn FROM inturn._apply_key(
            topic, claimed.keys[i], claimed.epochs[i], claimed.applied_seqs[i],
            claimed.attempts[i] OPERATOR(pg_catalog.+) 1,
            CASE WHEN claimed.attempts[i] OPERATOR(pg_catalog.>) 0 THEN 1 ELSE settings.batch_commands END,
            settings, applier, judged);
        commands := commands OPERATOR(pg_catalog.+) turn.done_seq OPERATOR(pg_catalog.-) claimed.applied_seqs[i];
        failures := failures OPERATOR(pg_catalog.+) turn.failures;
        skipped := skipped OPERATOR(pg_catalog.+) turn.skipped;
        outages := outages OPERATOR(pg_catalog.||) coalesce(turn.outage, '[]'); answered := answered OR turn.answered;
        IF turn.outcome IS NOT NULL THEN
            failed_keys := pg_catalog.array_append(failed_keys, claimed.keys[i]);
        ELSE
            done_keys := pg_catalog.array_append(done_keys, claimed.keys[i]);
            done_seqs := pg_catalog.array_append(done_seqs, turn.done_seq);
        END IF;
        cancellation := turn.cancellation; EXIT WHEN cancellation IS NOT NULL;
    END LOOP;

    cut := cut OR cancellation IS NOT NULL OR pg_catalog.clock_timestamp() OPERATOR(pg_catalog.>=) leave_at;
    target_time := pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) began_at;
    SET CONSTRAINTS ALL IMMEDIATE; -- also where nothing is to be finished: no timeout ends what a COMMIT runs
    PERFORM inturn.finish(topic, pg_catalog.array_agg(c.key), pg_catalog.array_agg(c.epoch),
                          pg_catalog.array_agg(c.applied_seq OPERATOR(pg_catalog.+) 1),
                          pg_catalog.array_agg(coalesce(d.seq, c.applied_seq)), applier)
    FROM ROWS FROM (pg_catalog.unnest(claimed.keys), pg_catalog.unnest(claimed.epochs),
                    pg_catalog.unnest(claimed.applied_seqs))
        c (key, epoch, applied_seq)
    LEFT JOIN ROWS FROM (pg_catalog.unnest(done_keys), pg_catalog.unnest(done_seqs)) d (key, seq)
        ON d.key OPERATOR(pg_catalog.=) c.key
    WHERE c.key OPERATOR(pg_catalog.<>) ALL (failed_keys)
      AND NOT (cut AND coalesce(d.seq, c.applied_seq) OPERATOR(pg_catalog.=) c.applied_seq)
    HAVING pg_catalog.count(*) OPERATOR(pg_catalog.>) 0;
END
$$;
COMMENT ON FUNCTION inturn.apply_batch IS
    'Claims ready keys of a topic with a SQL target, applies their next commands, ends the turns.';
