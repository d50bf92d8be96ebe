-- Applies ready keys of one topic for a while, then lets the other topics have their turn. Internal to apply.
--
-- Commits after every batch. since: where _begin_pass lets it begin; from there the clock hand follows the claims (see claim).
-- A visit lasts ten times as long as its first batch took, but at least 100 ms and at most a second: so long may a key wait
-- whose caller committed late, behind the hand. Keys share a transaction only while that stays short: as many as take
-- about 10 ms, so that a slow handler holds up its own key and no other. How long a key takes is what the quickest of the last
-- batches says: on a busy machine the others have waited for a processor. After a batch of
-- at least 100 ms it steps back for a moment: an operator who waits for the key gets it before it is claimed again.
-- careful: so many keys are still to be taken alone (see _claim_alone).
-- per_key: how many seconds a key takes, from the visit before; NULL: not known. found_any is set when there was a key to claim. Locks and raises what apply_batch does.
CREATE PROCEDURE inturn._visit_topic(
    topic text, since timestamptz, stop_at timestamptz, max_keys integer, applier text,
    INOUT commands bigint, INOUT failures bigint, INOUT found_any boolean, INOUT per_key double precision,
    INOUT careful integer
)
LANGUAGE plpgsql
AS $$
DECLARE
    leave_at timestamptz := stop_at;
    hand timestamptz := inturn._spread_out(topic, since, max_keys);
    width integer := coalesce(least(greatest(0.010 / per_key, 1), max_keys), 1);
    alone integer := 0;
    first boolean := true;
    started_at timestamptz;
    took interval;
    batch record;
BEGIN
    WHILE clock_timestamp() < leave_at LOOP
        started_at := clock_timestamp();
        IF careful > 0 THEN
            CALL inturn._visit_alone(topic, hand, applier, commands, failures, careful);
            EXIT WHEN hand IS NULL;
            found_any := true;
            CONTINUE;
        END IF;
        SELECT * INTO batch FROM inturn.apply_batch(topic, hand, CASE WHEN alone > 0 THEN 1 ELSE width END, applier, false);
        COMMIT AND CHAIN;
        EXIT WHEN batch.keys = 0;
        IF batch.lost THEN
            careful := batch.keys;
            CONTINUE;
        END IF;
        took := clock_timestamp() - started_at;
        IF took >= interval '100 ms' THEN
            PERFORM pg_sleep(least(extract(epoch FROM took) / 50, 0.02));
        END IF;
        IF first THEN
            leave_at := least(leave_at, started_at + greatest(least(took * 10, interval '1 s'), interval '100 ms'));
            first := false;
        END IF;
        found_any := true;
        commands := commands + batch.commands;
        failures := failures + batch.failures;
        IF batch.redo THEN
            -- The hand stays where it was: the same keys are claimed again, one at a time.
            alone := batch.keys;
        ELSE
            alone := greatest(alone - 1, 0);
            hand := batch.hand;
            per_key := greatest(least(per_key * 2, extract(epoch FROM batch.target_time) / batch.keys), 1e-6);
            width := least(greatest(0.010 / per_key, 1), max_keys, width * 2);
        END IF;
    END LOOP;
END
$$;
COMMENT ON PROCEDURE inturn._visit_topic IS 'Internal to apply: applies ready keys of one topic for a while.';
