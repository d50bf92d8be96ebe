-- Takes back what 0002_operator.sql did. What operators did is forgotten.
DROP FUNCTION inturn.set_topic;
DROP FUNCTION inturn.resume_topic;
DROP FUNCTION inturn.pause_topic;
DROP FUNCTION inturn.resume;
DROP FUNCTION inturn.pause;
DROP FUNCTION inturn.amend;
DROP FUNCTION inturn.replay;
DROP FUNCTION inturn.cancel_rest;
DROP FUNCTION inturn.skip;
DROP FUNCTION inturn.retry_all;
DROP FUNCTION inturn.retry;
DROP FUNCTION inturn.retry_key;
DROP FUNCTION inturn.move_past;
DROP FUNCTION inturn.settle_key;
DROP FUNCTION inturn.notify_appliers;
DROP FUNCTION inturn.record_action;
DROP FUNCTION inturn.require_reason;
DROP FUNCTION inturn.refuse_action;
DROP FUNCTION inturn.lock_topic;
DROP FUNCTION inturn.lock_cursor;
DROP FUNCTION inturn.key_facts;
DROP FUNCTION inturn.why;
DROP FUNCTION inturn.explain_key;
DROP FUNCTION inturn.explain_ready;
DROP FUNCTION inturn.explain_queued;
DROP FUNCTION inturn.explain_unserved;
DROP FUNCTION inturn.explain_empty;
DROP FUNCTION inturn.explain_standstill;
DROP FUNCTION inturn.explain_hands;
DROP FUNCTION inturn.explain_unknown;
DROP FUNCTION inturn.explain_append;
DROP FUNCTION inturn.name_command;
DROP FUNCTION inturn.near_keys;
DROP FUNCTION inturn.slips_of;
DROP FUNCTION inturn.is_first_append_open;
DROP FUNCTION inturn.find_locks;
DROP FUNCTION inturn.verify;
DROP FUNCTION inturn.verify_rows;
DROP FUNCTION inturn.verify_slice;
DROP FUNCTION inturn.verify_topics;
DROP FUNCTION inturn.timeline;
DROP FUNCTION inturn.topic_status;
DROP FUNCTION inturn.keys_query;
DROP FUNCTION inturn.key_state;
DROP FUNCTION inturn.list_appliers;
DROP FUNCTION inturn.name_sessions;
DROP FUNCTION inturn.session_facts;
DROP FUNCTION inturn.shorten;
DROP FUNCTION inturn.row_holders;
DROP FUNCTION inturn.session_kind;
DROP FUNCTION inturn.is_alive;
DROP FUNCTION inturn.session_waits_for;
DROP FUNCTION inturn.describe_backend;
DROP FUNCTION inturn.row_holder;
DROP FUNCTION inturn.read_verdict;
DROP FUNCTION inturn.announce_applier;
DROP FUNCTION inturn.pass_over;
DROP FUNCTION inturn.backoff;
-- functions/wake_key.sql
-- Makes an idle key ready, and notifies if an applier of its topic may be asleep. Internal to append.
--
-- The caller holds the key's row in key_sequence, and the key is drained: no applier holds the row in
-- key_cursor that is locked here, so no caller waits for a handler.
CREATE OR REPLACE FUNCTION inturn.wake_key(topic text, key text) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    asleep boolean;
BEGIN
    INSERT INTO inturn.key_cursor AS c (topic, key, ready_at)
    VALUES (wake_key.topic, wake_key.key, clock_timestamp())
    ON CONFLICT ON CONSTRAINT key_cursor_pkey DO UPDATE SET ready_at = EXCLUDED.ready_at
    RETURNING EXISTS (SELECT FROM inturn.listener l
                      WHERE l.topic = wake_key.topic AND l.asleep_until > clock_timestamp()) INTO asleep;
    IF asleep THEN
        PERFORM pg_notify('inturn.ready', wake_key.topic);
    END IF;
END
$$;
COMMENT ON FUNCTION inturn.wake_key IS 'Internal to append: makes an idle key ready and wakes a sleeping applier.';

-- functions/claim.sql
-- Claims ready keys of a topic, the longest ready first, and returns where each stands.
--
-- since: claim only keys that became ready at this time or later. An applier passes the ready_at of its last
-- claim (the clock hand), so that it does not walk again over the index entries of the turns before, which stay
-- as long as any snapshot is held; from time to time it starts from -infinity again.
-- epoch is the number of the turn that this claim starts.
-- Locks the rows in key_cursor, skipping locked ones; held until the end of the transaction. Claim at its top level:
-- finish and fail do not know a claim made under a savepoint.
-- Every row is a key: rows of commands are never locked, so nothing slides past a locked head.
CREATE OR REPLACE FUNCTION inturn.claim(topic text, since timestamptz DEFAULT '-infinity', max_keys integer DEFAULT 1)
RETURNS TABLE (key text, applied_seq bigint, epoch bigint, attempts integer, ready_at timestamptz)
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
AS $$
DECLARE
    -- A variable, not a call in the query: a volatile function cannot bound an index scan, and the scan would
    -- run over every key that waits for its next attempt.
    now constant timestamptz := clock_timestamp();
BEGIN
    RETURN QUERY
    SELECT c.key, c.applied_seq, c.epoch + 1, c.attempts, c.ready_at
    FROM inturn.key_cursor c
    WHERE c.topic = claim.topic AND c.ready_at >= since AND c.ready_at <= now
    ORDER BY c.ready_at LIMIT max_keys
    FOR UPDATE SKIP LOCKED;
END
$$;
COMMENT ON FUNCTION inturn.claim IS 'Claims ready keys of a topic until the end of the transaction.';

-- functions/move_cursors.sql
-- Moves the cursors of claimed keys, and the drained_seq of those that go idle; returns how many moved.
-- Internal to finish.
--
-- The rows are named by their place (ctid), which their locks keep: joined to an array of keys, a plan made while
-- the tables were small walks over every key of the topic. The settings leave the planner no other way.
-- Locks nothing that finish and claim have not locked. Raises XX000 when a row is not where its lock should keep it.
CREATE OR REPLACE FUNCTION inturn.move_cursors(
    sequences tid[], cursors tid[], drained boolean[], epochs bigint[], from_seqs bigint[], applied_seqs bigint[]
) RETURNS integer
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
SET enable_indexscan = off
SET enable_indexonlyscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET enable_material = off
AS $$
DECLARE
    moved integer;
BEGIN
    UPDATE inturn.key_sequence s SET drained_seq = t.applied_seq
    FROM unnest(sequences, drained, applied_seqs) t (tid, drained, applied_seq)
    WHERE s.ctid = t.tid AND t.drained;
    GET DIAGNOSTICS moved = ROW_COUNT;
    -- A key that went idle while its drained_seq stayed behind would never be woken again.
    IF moved <> cardinality(array_positions(drained, true)) THEN
        RAISE internal_error USING MESSAGE = 'a row in key_sequence has moved under its lock';
    END IF;

    -- Moves only what this transaction has claimed, whose lock is in xmax: if a handler ended the transaction and
    -- began another, the claim went with it.
    UPDATE inturn.key_cursor c SET
        applied_seq = t.applied_seq,
        epoch = CASE WHEN t.applied_seq >= t.from_seq THEN t.epoch ELSE c.epoch END,
        attempts = 0, last_error = NULL, failed_at = NULL,
        empty_turns = CASE WHEN t.applied_seq >= t.from_seq THEN 0 ELSE c.empty_turns + 1 END,
        ready_at = CASE
            WHEN t.drained THEN NULL
            WHEN t.applied_seq >= t.from_seq THEN clock_timestamp()
            ELSE clock_timestamp() + least(power(2, least(c.empty_turns, 10)), 100) * interval '1 ms' END
    FROM unnest(cursors, drained, epochs, from_seqs, applied_seqs) t (tid, drained, epoch, from_seq, applied_seq)
    WHERE c.ctid = t.tid AND c.xmax = pg_current_xact_id()::xid
      AND c.epoch = t.epoch - 1 AND c.applied_seq = t.from_seq - 1;
    GET DIAGNOSTICS moved = ROW_COUNT;
    RETURN moved;
END
$$;
COMMENT ON FUNCTION inturn.move_cursors IS 'Internal to finish: moves the cursors of claimed keys; returns how many moved.';

-- functions/fail.sql
DROP FUNCTION inturn.fail;
-- Ends a turn whose command failed_seq failed: records what came before it as applied, and the error on the key.
--
-- The key is ready again after an exponential backoff with jitter (between half and the whole of
-- backoff_base * 2^(attempts - 1), up to backoff_cap), or held once the command has failed max_attempts times.
-- Returns 'retrying' or 'held'. The key cannot go idle here, so its callers are not locked.
-- Locks the key's row in key_cursor, which the claim has locked already.
-- Raises IT030 when this transaction does not hold the claim, or another turn was recorded since; IT031 outside READ COMMITTED.
CREATE FUNCTION inturn.fail(
    topic text, key text, epoch bigint, from_seq bigint, failed_seq bigint,
    error text, applier text
) RETURNS text
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    settings inturn.topic;
    failures integer;
    wait interval;
    outcome text;
BEGIN
    PERFORM inturn.require_read_committed();
    SELECT * INTO settings FROM inturn.topic t WHERE t.name = fail.topic;
    SELECT CASE WHEN failed_seq > from_seq THEN 1 ELSE c.attempts + 1 END INTO failures FROM inturn.key_cursor c
    WHERE c.topic = fail.topic AND c.key = fail.key AND c.xmax = pg_current_xact_id()::xid
      AND c.epoch = fail.epoch - 1 AND c.applied_seq = from_seq - 1;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'IT030',
            MESSAGE = format('turn %s of key %L of topic %L was fenced off: its claim is not held any more',
                             epoch, key, topic);
    END IF;
    outcome := CASE WHEN failures >= settings.max_attempts THEN 'held' ELSE 'retrying' END;
    wait := make_interval(secs => (0.5 + random() / 2) * least(
        extract(epoch FROM settings.backoff_cap)::double precision,
        extract(epoch FROM settings.backoff_base)::double precision * power(2, least(failures - 1, 60))));

    UPDATE inturn.key_cursor c SET
        applied_seq = failed_seq - 1, epoch = fail.epoch, attempts = failures, empty_turns = 0,
        last_error = left(error, 8000), failed_at = clock_timestamp(),
        ready_at = CASE outcome WHEN 'retrying' THEN clock_timestamp() + wait END,
        held_at = CASE outcome WHEN 'held' THEN clock_timestamp() END
    WHERE c.topic = fail.topic AND c.key = fail.key;
    INSERT INTO inturn.turn (topic, key, epoch, from_seq, to_seq, outcome, applier, started_at, error)
    VALUES (topic, key, epoch, from_seq, failed_seq - 1, outcome, applier, now(), left(error, 8000));
    RETURN outcome;
END
$$;
COMMENT ON FUNCTION inturn.fail IS 'Ends a turn whose last command failed: records the error, sets the next attempt or holds the key.';

-- functions/target_query.sql
-- Returns the query that calls a SQL target for the next commands of some keys. Internal to the appliers.
--
-- Its parameters: $1 topic, $2 keys, $3 their applied_seqs, $4 the most commands of a key, $5 the attempt.
-- It gives one row: the keys that had commands, the last seq of each, and how many commands there were.
-- Commands are called as they are read, never collected: a key's in order (LATERAL is a nested loop over a sorted
-- inner side), one key after the other. OFFSET 0 keeps the call below the grouping, which may sort.
-- Takes no locks. Raises what target_function does.
CREATE OR REPLACE FUNCTION inturn.target_query(topic text, target text) RETURNS text
LANGUAGE sql STABLE
AS $$
SELECT format($query$
    SELECT array_agg(k.key), array_agg(k.last_seq), coalesce(sum(k.commands), 0) FROM (
        SELECT c.key, max(c.seq) AS last_seq, count(*) AS commands, count(c.effect) AS effects FROM (
            SELECT l.key, l.seq, %s(ROW($1, l.key, l.seq, l.name, l.payload, l.created_at, $5)::inturn.command) AS effect
            FROM unnest($2, $3) t (key, applied_seq) CROSS JOIN LATERAL (
                SELECT l.* FROM inturn.command_log l
                WHERE l.topic = $1 AND l.key = t.key AND l.seq > t.applied_seq ORDER BY l.seq LIMIT $4) l
            OFFSET 0) c
        GROUP BY c.key
        OFFSET 0) k
$query$, inturn.target_function(topic, target)::oid::regproc)
$$;
COMMENT ON FUNCTION inturn.target_query IS 'Internal: the query that calls a SQL target for the next commands of some keys.';

-- functions/apply_key.sql
DROP FUNCTION inturn.apply_key;
-- Applies the next commands of one claimed key one by one, with a SQL target, and records a failure.
-- Internal to apply_batch: for a key that is being tried again, or whose commands failed together.
--
-- When command n fails, all of this turn is rolled back and the commands before n run again: their effects stay.
-- done_seq: the last applied one. failed: the one after it failed, and that has ended the turn.
-- Locks and raises what fail does. A cancelled query (statement_timeout) and a terminated session end the
-- transaction; they are not failures of the command.
CREATE FUNCTION inturn.apply_key(
    topic text, key text, epoch bigint, applied_seq bigint, attempt integer, max_commands integer,
    target text, applier text,
    OUT done_seq bigint, OUT failed boolean
)
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    stop_seq bigint := applied_seq + max_commands;
    commands bigint;
    message text; detail text; hint text; context text;
    error text;
BEGIN
    failed := false;
    LOOP
        BEGIN
            done_seq := applied_seq;
            WHILE done_seq < stop_seq LOOP
                EXECUTE format('SELECT commands FROM (%s) AS q (keys, seqs, commands)',
                               inturn.target_query(topic, target))
                INTO commands USING topic, ARRAY[key], ARRAY[done_seq], 1, attempt;
                EXIT WHEN commands = 0;
                done_seq := done_seq + 1;
            END LOOP;
            EXIT;
        EXCEPTION WHEN assert_failure OR OTHERS THEN
            GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL,
                hint = PG_EXCEPTION_HINT, context = PG_EXCEPTION_CONTEXT;
            error := concat_ws(E'\n', format('%s (SQLSTATE %s)', message, SQLSTATE), 'DETAIL: ' || nullif(detail, ''),
                               'HINT: ' || nullif(hint, ''), 'CONTEXT: ' || nullif(split_part(context, E'\nSQL statement "SELECT commands', 1), ''));
            failed := true;
            -- Only what came before the failed command runs again; it shrinks every time round, so this ends.
            stop_seq := done_seq;
        END;
    END LOOP;
    IF failed THEN
        PERFORM inturn.fail(topic, key, epoch, applied_seq + 1, done_seq + 1, error, applier);
    END IF;
END
$$;
COMMENT ON FUNCTION inturn.apply_key IS 'Internal to apply_batch: applies the next commands of one key one by one, and records a failure.';

-- functions/apply_batch.sql
DROP FUNCTION inturn.apply_batch;
-- Claims up to max_keys ready keys of a topic with a SQL target, applies their next commands, and ends the turns.
-- The caller commits at once afterwards: finish has locked the keys against their callers.
--
-- since: as in claim; pass the returned hand to the next call. keys = 0: none was ready, there is no hand.
-- redo: a command failed while several keys shared the transaction. Nothing was changed; commit, then call with
-- max_keys => 1 for as many keys, so that a failure is one key's and a deadlock between handlers cannot recur.
-- Locks: rows in key_cursor (claim), what the target locks, rows in key_sequence (finish). Waits only in the target.
-- Raises IT001, IT012 for a topic without a SQL target, and what claim, finish and fail raise. A target that is not
-- there fails the commands, as one that raises does: the other topics go on.
CREATE FUNCTION inturn.apply_batch(
    topic text, since timestamptz, max_keys integer, applier text,
    OUT keys integer, OUT commands bigint, OUT failures integer, OUT redo boolean, OUT hand timestamptz
)
LANGUAGE plpgsql VOLATILE
-- No SET clauses: they would reach into the target.
AS $$
DECLARE
    settings inturn.topic;
    claimed record;
    fresh record;
    done_keys text[]; done_seqs bigint[];
    step_by_step boolean := false;
    turn record;
    failed_keys text[] := '{}';
BEGIN
    keys := 0; commands := 0; failures := 0; redo := false;
    SELECT * INTO settings FROM inturn.topic t WHERE t.name = apply_batch.topic;
    IF NOT FOUND THEN
        PERFORM inturn.refuse_topic(topic);
    END IF;
    IF settings.target NOT LIKE 'sql:%' THEN
        RAISE EXCEPTION USING ERRCODE = 'IT012',
            MESSAGE = format('topic %L has the target %s, which SQL cannot apply', topic, settings.target),
            HINT = 'Apply it with: inturn apply --app MODULE:APPLIER.';
    END IF;

    SELECT array_agg(c.key) AS keys, array_agg(c.applied_seq) AS applied_seqs, array_agg(c.epoch) AS epochs,
           array_agg(c.attempts) AS attempts, max(c.ready_at) AS ready_at
    INTO claimed FROM inturn.claim(topic, since, max_keys) c;
    IF claimed.keys IS NULL THEN
        RETURN;
    END IF;
    keys := cardinality(claimed.keys);
    hand := claimed.ready_at;

    SELECT array_agg(c.key) AS keys, array_agg(c.applied_seq) AS applied_seqs
    INTO fresh FROM unnest(claimed.keys, claimed.applied_seqs, claimed.attempts) c (key, applied_seq, attempts)
    WHERE c.attempts = 0;
    BEGIN
        EXECUTE inturn.target_query(topic, settings.target) INTO done_keys, done_seqs, commands
        USING topic, fresh.keys, fresh.applied_seqs, settings.batch_commands, 1;
    EXCEPTION WHEN assert_failure OR OTHERS THEN
        IF cardinality(fresh.keys) > 1 THEN
            redo := true;
            RETURN;
        END IF;
        step_by_step := true;
    END;
    FOR i IN 1 .. keys LOOP
        CONTINUE WHEN claimed.attempts[i] = 0 AND NOT step_by_step;
        SELECT * INTO turn FROM inturn.apply_key(
            topic, claimed.keys[i], claimed.epochs[i], claimed.applied_seqs[i], claimed.attempts[i] + 1,
            CASE WHEN claimed.attempts[i] > 0 THEN 1 ELSE settings.batch_commands END,
            settings.target, applier);
        commands := commands + turn.done_seq - claimed.applied_seqs[i];
        IF turn.failed THEN
            failed_keys := failed_keys || claimed.keys[i];
            failures := failures + 1;
        ELSE
            done_keys := done_keys || claimed.keys[i];
            done_seqs := done_seqs || turn.done_seq;
        END IF;
    END LOOP;

    PERFORM inturn.finish(topic, array_agg(c.key), array_agg(c.epoch), array_agg(c.applied_seq + 1),
                          array_agg(coalesce(d.seq, c.applied_seq)), applier)
    FROM unnest(claimed.keys, claimed.epochs, claimed.applied_seqs) c (key, epoch, applied_seq)
    LEFT JOIN unnest(done_keys, done_seqs) d (key, seq) ON d.key = c.key
    WHERE c.key <> ALL (failed_keys)
    HAVING count(*) > 0;
END
$$;
COMMENT ON FUNCTION inturn.apply_batch IS 'Claims ready keys of a topic with a SQL target, applies their next commands, ends the turns.';

-- functions/visit_topic.sql
-- Applies ready keys of one topic for a while, then lets the other topics have their turn. Internal to apply.
--
-- Commits after every batch. The clock hand starts from the oldest ready key at every visit, and follows the claims
-- from there (see claim). A visit lasts ten times as long as its first batch took, which walks over the entries of
-- earlier turns, but at least 100 ms and at most a second: so long may a key wait whose caller committed late, behind
-- the hand. Keys share a transaction only while that stays short: their number doubles after a batch
-- of under 10 ms and halves after a longer one, so that a slow handler holds up its own key and no other.
-- found_any is set when there was a key to claim. Locks and raises what apply_batch does.
CREATE OR REPLACE PROCEDURE inturn.visit_topic(
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
    WHILE clock_timestamp() < leave_at LOOP
        started_at := clock_timestamp();
        SELECT * INTO batch FROM inturn.apply_batch(topic, hand, CASE WHEN alone > 0 THEN 1 ELSE width END, applier);
        COMMIT AND CHAIN;
        EXIT WHEN batch.keys = 0;
        took := clock_timestamp() - started_at;
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

-- functions/apply.sql
-- Applies the commands of topics with SQL targets until none is ready: the whole applier, for psql and pg_cron.
--
-- topics: NULL for every topic with a SQL target. max_seconds: stop after this long even if some are ready.
-- max_keys: the most keys that share a transaction; keep it under 64, since each that is tried again takes a
-- subtransaction, and more of them slow down every other session. Returns how many commands were applied and how many failed.
-- Commits after every batch, so it cannot be called inside a transaction block (2D000).
-- Any number may run at once. Locks and raises what apply_batch does.
CREATE OR REPLACE PROCEDURE inturn.apply(
    topics text[] DEFAULT NULL, max_seconds double precision DEFAULT NULL, max_keys integer DEFAULT 50,
    INOUT commands bigint DEFAULT 0, INOUT failures bigint DEFAULT 0
)
LANGUAGE plpgsql
AS $$
DECLARE
    stop_at constant timestamptz := coalesce(clock_timestamp() + make_interval(secs => max_seconds), 'infinity');
    applier constant text := format('sql:%s', pg_backend_pid());
    served text;
    visit record;
    found_any boolean := true;
BEGIN
    commands := 0; failures := 0;
    topics := coalesce(topics, ARRAY(SELECT t.name FROM inturn.topic t WHERE t.target LIKE 'sql:%' ORDER BY t.name));
    -- Whatever the session's default; every batch chains its transaction to this one.
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    WHILE found_any AND clock_timestamp() < stop_at LOOP
        found_any := false;
        FOREACH served IN ARRAY topics LOOP
            CALL inturn.visit_topic(served, stop_at, max_keys, applier, commands, failures, found_any);
        END LOOP;
    END LOOP;
END
$$;
COMMENT ON PROCEDURE inturn.apply IS 'Applies the commands of topics with SQL targets until none is ready.';

-- functions/check_topic.sql
-- Refuses a topic whose settings are out of range. Internal to create_topic. Takes no locks.
--
-- Raises IT011 for the first setting that is, IT012 for a target that cannot be called.
CREATE OR REPLACE FUNCTION inturn.check_topic(topic inturn.topic) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    problem constant text := CASE
        WHEN topic.name IS NULL THEN 'its name is NULL'
        WHEN octet_length(topic.name) NOT BETWEEN 1 AND 128
            THEN format('its name has %s octets; 1 to 128 are allowed', octet_length(topic.name))
        WHEN (topic.target = 'python' OR topic.target LIKE 'sql:_%') IS NOT TRUE
            THEN format('target is %s; python or sql:SCHEMA.FUNCTION are allowed', coalesce(quote_literal(topic.target), 'NULL'))
        WHEN (topic.max_attempts >= 1) IS NOT TRUE
            THEN format('max_attempts is %s; 1 or more are allowed', coalesce(topic.max_attempts::text, 'NULL'))
        WHEN (topic.backoff_base > '0') IS NOT TRUE
            THEN format('backoff_base is %s; it must be over 0', coalesce(topic.backoff_base::text, 'NULL'))
        WHEN (topic.backoff_cap BETWEEN topic.backoff_base AND '7 days') IS NOT TRUE
            THEN format('backoff_cap is %s; from backoff_base (%s) to 7 days are allowed',
                        coalesce(topic.backoff_cap::text, 'NULL'), topic.backoff_base)
        WHEN (topic.max_payload_bytes BETWEEN 1024 AND 67108864) IS NOT TRUE
            THEN format('max_payload_bytes is %s; 1024 to 67108864 are allowed',
                        coalesce(topic.max_payload_bytes::text, 'NULL'))
        WHEN (topic.batch_commands BETWEEN 1 AND 10000) IS NOT TRUE
            THEN format('batch_commands is %s; 1 to 10000 are allowed', coalesce(topic.batch_commands::text, 'NULL'))
        END;
BEGIN
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'IT011',
            MESSAGE = format('topic %s is refused: %s', coalesce(quote_literal(left(topic.name, 40)), 'NULL'), problem),
            HINT = 'Give another value, or leave the setting out for its default.';
    ELSIF topic.target LIKE 'sql:%' THEN
        PERFORM inturn.target_function(topic.name, topic.target);
    END IF;
END
$$;
COMMENT ON FUNCTION inturn.check_topic IS 'Internal to create_topic: refuses settings that are out of range.';

-- functions/create_topic.sql
DROP FUNCTION inturn.create_topic;
-- Creates a topic. Returns true, or false when it is there already with the same settings.
--
-- target: 'python', or 'sql:SCHEMA.FUNCTION', a function that takes one inturn.command.
-- Locks: none beyond the new row.
-- Raises IT010 when the topic exists with other settings, and what check_topic raises.
CREATE FUNCTION inturn.create_topic(
    name text, target text DEFAULT 'python', max_attempts integer DEFAULT 5,
    backoff_base interval DEFAULT '1 second', backoff_cap interval DEFAULT '5 minutes',
    max_payload_bytes integer DEFAULT 1048576, batch_commands integer DEFAULT 100
) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    topic constant inturn.topic :=
        ROW(name, target, max_attempts, backoff_base, backoff_cap, max_payload_bytes, batch_commands, clock_timestamp());
BEGIN
    PERFORM inturn.check_topic(topic);
    INSERT INTO inturn.topic SELECT topic.* ON CONFLICT DO NOTHING;
    IF FOUND THEN
        RETURN true;
    END IF;
    PERFORM FROM inturn.topic t
    WHERE (t.name, t.target, t.max_attempts, t.backoff_base, t.backoff_cap, t.max_payload_bytes, t.batch_commands)
        = (topic.name, topic.target, topic.max_attempts, topic.backoff_base, topic.backoff_cap,
           topic.max_payload_bytes, topic.batch_commands);
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'IT010',
            MESSAGE = format('topic %L exists already, with other settings', name),
            HINT = 'Compare with: SELECT * FROM inturn.topic.';
    END IF;
    RETURN false;
END
$$;
COMMENT ON FUNCTION inturn.create_topic IS 'Creates a topic; false when it is there already with the same settings.';

-- functions/list_keys.sql
DROP FUNCTION inturn.list_keys;
-- Lists keys and where they stand, the worst first: held, then ready (the longest first), then idle. Takes no locks.
--
-- of_topic, of_state: NULL for all. state: held, retrying (its next command failed and waits for its next attempt),
-- ready, idle. pending counts commands that are committed and not applied; oldest_pending_at is when the next
-- one was appended. Each state is read from its own index, so this stays quick with millions of keys.
CREATE FUNCTION inturn.list_keys(of_topic text DEFAULT NULL, of_state text DEFAULT NULL, max_keys integer DEFAULT 50)
RETURNS TABLE (
    topic text, key text, state text, applied_seq bigint, last_seq bigint, pending bigint,
    oldest_pending_at timestamptz, attempts integer, ready_at timestamptz, held_at timestamptz, last_error text
)
LANGUAGE sql STABLE
AS $$
SELECT c.topic, c.key, c.state, c.applied_seq, l.last_seq, l.last_seq - c.applied_seq, o.created_at,
       c.attempts, c.ready_at, c.held_at, c.last_error
FROM inturn.topic t CROSS JOIN LATERAL (
    (SELECT 1 AS rank, 'held' AS state, c.* FROM inturn.key_cursor c
     WHERE c.topic = t.name AND c.held_at IS NOT NULL AND coalesce(of_state, 'held') = 'held'
     ORDER BY c.held_at LIMIT max_keys)
    UNION ALL
    (SELECT 2, CASE WHEN c.attempts > 0 THEN 'retrying' ELSE 'ready' END, c.* FROM inturn.key_cursor c
     WHERE c.topic = t.name AND c.ready_at IS NOT NULL
       AND coalesce(of_state, CASE WHEN c.attempts > 0 THEN 'retrying' ELSE 'ready' END)
           = CASE WHEN c.attempts > 0 THEN 'retrying' ELSE 'ready' END
     ORDER BY c.ready_at LIMIT max_keys)
    UNION ALL
    (SELECT 3, 'idle', c.* FROM inturn.key_cursor c
     WHERE c.topic = t.name AND c.ready_at IS NULL AND c.held_at IS NULL AND coalesce(of_state, 'idle') = 'idle'
     ORDER BY c.key LIMIT max_keys)
) c
CROSS JOIN LATERAL (
    SELECT greatest(c.applied_seq, (SELECT max(l.seq) FROM inturn.command_log l
                                    WHERE l.topic = c.topic AND l.key = c.key)) AS last_seq) l
LEFT JOIN inturn.command_log o ON o.topic = c.topic AND o.key = c.key AND o.seq = c.applied_seq + 1
WHERE of_topic IS NULL OR t.name = of_topic
ORDER BY c.rank, coalesce(c.held_at, c.ready_at), c.topic, c.key LIMIT max_keys
$$;
COMMENT ON FUNCTION inturn.list_keys IS 'Lists keys and where they stand, the worst first.';

-- functions/pending_commands.sql
-- Counts the committed commands of these topics' ready keys that are not applied: what a drain has before it.
-- Takes no locks. Reads them all: seconds for a million.
CREATE OR REPLACE FUNCTION inturn.pending_commands(topics text[]) RETURNS bigint
LANGUAGE sql STABLE
AS $$
SELECT count(*) FROM inturn.key_cursor c
JOIN inturn.command_log l ON l.topic = c.topic AND l.key = c.key AND l.seq > c.applied_seq
WHERE c.topic = ANY (topics) AND c.ready_at <= clock_timestamp()
$$;
COMMENT ON FUNCTION inturn.pending_commands IS 'Counts the commands of ready keys that are not applied.';

DROP TABLE inturn.applier;
DROP TABLE inturn.operator_action;
DROP TABLE inturn.skip;
-- No key may stand still for a reason that is forgotten: an applier finds out what is pending on it.
UPDATE inturn.key_cursor SET ready_at = clock_timestamp()
WHERE paused_at IS NOT NULL AND held_at IS NULL AND ready_at IS NULL;
ALTER TABLE inturn.key_cursor DROP COLUMN paused_at, DROP COLUMN paused_until;
DROP INDEX inturn.key_cursor_retrying;
ALTER TABLE inturn.topic DROP COLUMN on_exhausted, DROP COLUMN paused_at, DROP COLUMN paused_until;
-- The older schema has no other word for them.
UPDATE inturn.turn SET outcome = 'held' WHERE outcome IN ('skipped', 'cancelled');
ALTER TABLE inturn.turn
    DROP CONSTRAINT turn_outcome_check,
    ADD CONSTRAINT turn_outcome_check CHECK (outcome IN ('applied', 'retrying', 'held'));
DROP INDEX inturn.turn_finished;

COMMENT ON COLUMN inturn.topic.max_attempts IS 'A command that failed this often holds its key.';
COMMENT ON COLUMN inturn.key_cursor.applied_seq IS 'Everything up to here has taken effect.';
COMMENT ON COLUMN inturn.key_cursor.ready_at IS 'From when on an applier may claim the key; NULL: idle or held.';
COMMENT ON COLUMN inturn.key_cursor.epoch IS 'Counts the turns of the key; the fencing token.';
COMMENT ON TABLE inturn.turn IS 'What each turn did: commands from_seq to to_seq were applied; then, unless the outcome is applied, to_seq + 1 failed.';
-- grants.sql
-- Every privilege, in one place. Nothing here is granted to PUBLIC.
REVOKE ALL ON SCHEMA inturn FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA inturn FROM PUBLIC;
REVOKE ALL ON ALL ROUTINES IN SCHEMA inturn FROM PUBLIC;

GRANT USAGE ON SCHEMA inturn TO inturn_caller, inturn_applier, inturn_operator;
GRANT SELECT ON inturn.schema_version TO inturn_caller, inturn_applier, inturn_operator;

-- A caller appends and nothing more. The view reads as empty; RETURNING needs the SELECT.
GRANT EXECUTE ON FUNCTION
    inturn.append(text, text, text, jsonb, text),
    inturn.append_many(text, text[], text[], jsonb[], text[])
TO inturn_caller;
GRANT SELECT, INSERT ON inturn.outbox TO inturn_caller;

-- An applier moves cursors with its own privileges: its targets run with them too.
GRANT EXECUTE ON ROUTINE
    inturn.claim(text, timestamptz, integer),
    inturn.claim_commands(text, timestamptz, integer),
    inturn.move_cursors(tid[], tid[], boolean[], bigint[], bigint[], bigint[]),
    inturn.finish(text, text[], bigint[], bigint[], bigint[], text),
    inturn.fail(text, text, bigint, bigint, bigint, text, text),
    inturn.require_read_committed(),
    inturn.refuse_topic(text),
    inturn.target_function(text, text),
    inturn.target_query(text, text),
    inturn.apply_key(text, text, bigint, bigint, integer, integer, text, text),
    inturn.apply_batch(text, timestamptz, integer, text),
    inturn.visit_topic(text, timestamptz, integer, text, bigint, bigint, boolean),
    inturn.apply(text[], double precision, integer, bigint, bigint),
    inturn.announce_sleep(text[]),
    inturn.next_ready(text[], timestamptz),
    inturn.pending_commands(text[])
TO inturn_applier;
GRANT SELECT ON inturn.topic, inturn.command_log TO inturn_applier;
GRANT SELECT, UPDATE ON inturn.key_cursor, inturn.key_sequence TO inturn_applier;
GRANT SELECT, INSERT, UPDATE ON inturn.listener TO inturn_applier;
GRANT INSERT ON inturn.turn TO inturn_applier;

-- An operator reads everything and creates topics.
GRANT SELECT ON ALL TABLES IN SCHEMA inturn TO inturn_operator;
GRANT INSERT ON inturn.topic TO inturn_operator;
GRANT EXECUTE ON FUNCTION
    inturn.create_topic(text, text, integer, interval, interval, integer, integer),
    inturn.check_topic(inturn.topic),
    inturn.target_function(text, text),
    inturn.list_keys(text, text, integer),
    inturn.pending_commands(text[])
TO inturn_operator;
