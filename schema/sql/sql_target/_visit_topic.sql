-- Applies ready keys of one topic for a while, then lets the other topics have their turn. Internal to apply.
--
-- Commits after every batch, and puts back what its targets have set in the session: settings, see _keep_settings.
-- since: where _begin_pass lets it begin; from there the clock hand follows the claims (see claim).
-- A visit lasts ten times as long as its first batch took, but at least 100 ms and at most a second: so long may a key
-- wait whose caller committed late, behind the hand. A batch that was undone is followed by a narrower one, however
-- long it took. Keys share a transaction only while that stays short: as many as take about 10 ms, so that a slow
-- handler holds up its own key and no other. How long a key takes is what the quickest of the last batches says, which
-- is forgotten slowly: on a busy machine the others have waited for a processor. After a batch of at least 100 ms it
-- steps back for a moment: an operator who waits for the key gets it before it is claimed again. careful: how many keys
-- are still to be taken alone (see _claim_alone).
-- per_key: how many seconds a key takes, from the visit before; NULL: not known. found_any is set when there was a key
-- to claim. failing: see _judge_outages; leaves the topic once it is down. Locks and raises what apply_batch does.
CREATE PROCEDURE inturn._visit_topic(
    topic text, since timestamptz, stop_at timestamptz, max_keys integer, applier text, settings text[],
    INOUT commands bigint, INOUT failures bigint, INOUT found_any boolean, INOUT per_key double precision,
    INOUT careful integer, INOUT failing jsonb
)
LANGUAGE plpgsql
-- It commits, so it cannot be pinned: all is qualified.
AS $$
DECLARE
    leave_at timestamp with time zone := stop_at;
    width integer := coalesce(least(greatest(0.010 OPERATOR(pg_catalog./) per_key, 1), max_keys), 1);
    -- The key that an applier died of is among the oldest.
    hand timestamp with time zone := CASE WHEN careful OPERATOR(pg_catalog.>) 0 THEN since ELSE inturn._spread_out(
        topic, since, CASE WHEN per_key IS NULL THEN max_keys ELSE width END) END;
    alone integer := 0; first boolean := true; owes boolean := false; took interval; batch pg_catalog.record;
    lost_at timestamp with time zone; started_at timestamp with time zone;
BEGIN
    WHILE pg_catalog.clock_timestamp() OPERATOR(pg_catalog.<) CASE WHEN owes THEN stop_at ELSE leave_at END
        AND failing OPERATOR(pg_catalog.#>) ARRAY[topic, '4'] IS NULL LOOP
        started_at := pg_catalog.clock_timestamp();
        IF careful OPERATOR(pg_catalog.>) 0 THEN
            CALL inturn._visit_alone(topic, hand, applier, settings, commands, failures, careful, failing);
            EXIT WHEN hand IS NULL; found_any := true; CONTINUE;
        END IF;
        SELECT * INTO batch FROM inturn.apply_batch(
            topic, hand, CASE WHEN alone OPERATOR(pg_catalog.>) 0 THEN 1 ELSE width END, applier, false, true);
        failing := CASE WHEN batch.outages OPERATOR(pg_catalog.<>) '[]' OR failing OPERATOR(pg_catalog.<>) '{}'
            THEN inturn._judge_outages(topic, batch.outages, batch.answered OR batch.commands OPERATOR(pg_catalog.>) 0,
                                       applier, failing) ELSE failing END;
        COMMIT AND CHAIN;
        PERFORM inturn._keep_settings(settings);
        IF batch.keys OPERATOR(pg_catalog.=) 0 THEN
            EXIT WHEN NOT first OR (hand OPERATOR(pg_catalog.>) since) IS NOT true;
            hand := since; CONTINUE; -- where it began, others have all in hand
        END IF;
        IF batch.cancellation IS NOT NULL THEN
            PERFORM inturn._end_applier(applier);
            COMMIT AND CHAIN;
            RAISE query_canceled USING MESSAGE = batch.cancellation,
                DETAIL = pg_catalog.format('The next command of a key of topic %L has failed by it, and is tried again '
                                           'later.', topic);
        END IF;
        IF batch.lost THEN
            lost_at := batch.hand;
            CALL inturn._visit_alone(topic, lost_at, applier, settings, commands, failures, alone, failing);
            alone := 0; leave_at := least(leave_at, started_at OPERATOR(pg_catalog.+) interval '1 s');
            -- A key that was put off for a moment may be back by the next claim, but as the last one.
            owes := width OPERATOR(pg_catalog.>) 1; width := greatest(width OPERATOR(pg_catalog./) 2, 1);
            found_any := true; CONTINUE;
        END IF;
        took := pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) started_at;
        PERFORM pg_catalog.pg_sleep(least(extract(epoch FROM took) OPERATOR(pg_catalog./) 50, 0.02))
        WHERE took OPERATOR(pg_catalog.>=) interval '100 ms';
        leave_at := CASE WHEN NOT first THEN leave_at ELSE least(leave_at, started_at OPERATOR(pg_catalog.+)
            greatest(least(took OPERATOR(pg_catalog.*) 10, interval '1 s'), interval '100 ms')) END;
        first := false; found_any := true; commands := commands OPERATOR(pg_catalog.+) batch.commands;
        failures := failures OPERATOR(pg_catalog.+) batch.failures;
        IF batch.redo THEN
            -- The hand stays where it was: the same keys are claimed again, one at a time. Some of them in this visit,
            -- however long the batch took: otherwise the next one would begin with the same batch, for ever.
            alone := batch.keys; owes := batch.keys OPERATOR(pg_catalog.>) 1;
            leave_at := greatest(leave_at, least(stop_at, pg_catalog.clock_timestamp()
                                                          OPERATOR(pg_catalog.+) interval '100 ms'));
        ELSE
            alone := greatest(alone OPERATOR(pg_catalog.-) 1, 0); hand := batch.hand; owes := false;
            per_key := inturn._seconds_per_key(
                per_key, extract(epoch FROM batch.target_time) OPERATOR(pg_catalog./) batch.keys, took, max_keys);
            width := least(greatest(0.010 OPERATOR(pg_catalog./) per_key, 1), max_keys, width OPERATOR(pg_catalog.*) 2);
        END IF;
    END LOOP;
END
$$;
COMMENT ON PROCEDURE inturn._visit_topic IS 'Internal to apply: applies ready keys of one topic for a while.';
