-- Applies ready keys of one topic for a while, then lets the other topics have their turn. Internal to apply.
--
-- Commits after every batch. The clock hand starts from the oldest ready key at every visit, and follows the claims
-- from there (see claim). A visit lasts ten times as long as its first batch took, which walks over the entries of
-- earlier turns, but at least 100 ms and at most a second: so long may a key wait whose caller committed late, behind
-- the hand. Keys share a transaction only while that stays short: their number doubles after a batch
-- of under 10 ms and halves after a longer one, so that a slow handler holds up its own key and no other. After one of
-- at least 100 ms it steps back for a moment: an operator who waits for the key gets it before it is claimed again.
-- found_any is set when there was a key to claim. Locks and raises what apply_batch does.
CREATE PROCEDURE inturn.visit_topic(
    topic text, stop_at timestamptz, max_keys integer, applier text,
    INOUT commands bigint, INOUT failures bigint, INOUT found_any boolean
)
LANGUAGE plpgsql
AS $$
DECLARE
    leave_at timestamptz := stop_at;
    hand timestamptz := '-infinity';
    width integer := 1;
    alone integer := 0;
    started_at timestamptz;
    took interval;
    batch record;
BEGIN
    IF inturn.take_hints(ARRAY[topic]) > 0 THEN
        COMMIT AND CHAIN;
    END IF;
    WHILE clock_timestamp() < leave_at LOOP
        started_at := clock_timestamp();
        SELECT * INTO batch FROM inturn.apply_batch(topic, hand, CASE WHEN alone > 0 THEN 1 ELSE width END, applier);
        COMMIT AND CHAIN;
        EXIT WHEN batch.keys = 0;
        took := clock_timestamp() - started_at;
        IF took >= interval '100 ms' THEN
            PERFORM pg_sleep(least(extract(epoch FROM took) / 50, 0.02));
        END IF;
        IF hand = '-infinity' THEN
            leave_at := least(leave_at, started_at + greatest(least(took * 10, interval '1 s'), interval '100 ms'));
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
            width := CASE WHEN took < interval '10 ms'
                          THEN least(width * 2, max_keys) ELSE greatest(width / 2, 1) END;
        END IF;
    END LOOP;
END
$$;
COMMENT ON PROCEDURE inturn.visit_topic IS 'Internal to apply: applies ready keys of one topic for a while.';
