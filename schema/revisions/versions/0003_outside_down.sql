-- Takes back what 0003_outside.sql did.
DROP FUNCTION inturn.record_progress;
DROP FUNCTION inturn.fail(text, text, bigint, bigint, text, jsonb);
DROP FUNCTION inturn.renew;
DROP FUNCTION inturn.advance;
DROP FUNCTION inturn.release;
DROP FUNCTION inturn.hold_lease;
DROP FUNCTION inturn.claim(text[], integer, interval, text);
DROP FUNCTION inturn.begin_lease;
DROP FUNCTION inturn.lease_end;
DROP FUNCTION inturn.fill_gap;
DROP FUNCTION inturn.lock_callers;
DROP FUNCTION inturn.refuse_busy;
DROP FUNCTION inturn.explain_lease;
DROP FUNCTION inturn.describe_lease;
DROP FUNCTION inturn.explain_gap;
DROP FUNCTION inturn.find_later;
DROP FUNCTION inturn.explain_appending;
DROP FUNCTION inturn.is_append_open;
DROP FUNCTION inturn.record_failure;
DROP FUNCTION inturn.next_commands;
DROP FUNCTION inturn.append_given;
DROP FUNCTION inturn.find_gap;
DROP FUNCTION inturn.end_gap;
DROP FUNCTION inturn.is_there;
DROP FUNCTION inturn.refuse_place;
DROP FUNCTION inturn.refuse_number;
-- functions/append_first.sql
-- Appends the first command to a new key and returns 1; NULL when the key has just become known. Internal to append.
--
-- Two first callers meet on the primary key: the second waits for the first, and gets NULL, or is the first itself
-- if that one rolled back. At REPEATABLE READ and SERIALIZABLE it gets 40001.
-- Locks, in this order, held to commit: the key's new row in key_sequence; its row in key_cursor.
-- Raises what refuse_command raises.
CREATE OR REPLACE FUNCTION inturn.append_first(topic text, key text, name text, payload jsonb, idempotency_key text)
RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    INSERT INTO inturn.key_sequence (topic, key)
    SELECT t.name, append_first.key FROM inturn.topic t
    WHERE t.name = append_first.topic AND octet_length(append_first.key) BETWEEN 1 AND 512
      AND coalesce(octet_length(append_first.idempotency_key), 1) BETWEEN 1 AND 512
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        PERFORM inturn.refuse_command(topic, key, name, payload, idempotency_key);
        RETURN NULL;
    END IF;
    INSERT INTO inturn.command_log (topic, key, seq, name, payload, idempotency_key)
    VALUES (append_first.topic, append_first.key, 1, append_first.name,
            coalesce(append_first.payload, '{}'), append_first.idempotency_key);
    PERFORM inturn.wake_key(topic, key);
    RETURN 1;
END
$$;
COMMENT ON FUNCTION inturn.append_first IS 'Internal to append: appends the first command to a new key.';

-- functions/append.sql
DROP FUNCTION inturn.append;
-- Appends one command to a key, in the caller's transaction, and returns its seq.
--
-- The same idempotency key again on the same key appends nothing and returns the first seq.
-- Locks, in this order, held to commit: the key's row in key_sequence; for an idle key, its row in key_cursor.
-- Raises IT001 to IT005 (see refuse_command); 40001 when the caller's snapshot is older than the key's last append.
-- The last number is looked for in a statement after the lock: on the lock's own snapshot, numbers would repeat.
CREATE FUNCTION inturn.append(
    topic text, key text, name text,
    payload jsonb DEFAULT '{}', idempotency_key text DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    drained bigint;
    known bigint;
    new_seq bigint;
BEGIN
    -- Every topic takes 1024 bytes of payload; only for more is its limit looked up.
    IF octet_length(name) BETWEEN 1 AND 128 IS NOT TRUE OR octet_length(payload::text) > 1024 THEN
        PERFORM inturn.refuse_command(topic, key, name, payload, idempotency_key);
    END IF;
    LOOP
        SELECT s.drained_seq, greatest(s.drained_seq, s.known_seq) INTO drained, known FROM inturn.key_sequence s
        WHERE s.topic = append.topic AND s.key = append.key FOR UPDATE;
        EXIT WHEN FOUND;
        -- No row yet: this is the key's first command, unless another caller's has just committed.
        new_seq := inturn.append_first(topic, key, name, payload, idempotency_key);
        IF new_seq IS NOT NULL THEN
            RETURN new_seq;
        END IF;
    END LOOP;

    -- From here on statements see every earlier append to the key: its caller has committed or is gone.
    IF idempotency_key IS NOT NULL THEN
        PERFORM inturn.refuse_command(topic, key, name, payload, idempotency_key);
        SELECT l.seq INTO new_seq FROM inturn.command_log l
        WHERE l.topic = append.topic AND l.key = append.key AND l.idempotency_key = append.idempotency_key;
        IF FOUND THEN
            RETURN new_seq;
        END IF;
    END IF;
    IF current_setting('transaction_isolation') = 'read committed' THEN
        INSERT INTO inturn.command_log AS l (topic, key, seq, name, payload, idempotency_key)
        VALUES (append.topic, append.key,
                1 + coalesce((SELECT l.seq FROM inturn.command_log l
                              WHERE l.topic = append.topic AND l.key = append.key AND l.seq > known
                              ORDER BY l.seq DESC LIMIT 1), known),
                append.name, coalesce(append.payload, '{}'), append.idempotency_key)
        RETURNING l.seq INTO new_seq;
    ELSE
        new_seq := inturn.insert_on_snapshot(topic, key, known, name, payload, idempotency_key);
    END IF;

    -- The first command after the drained ones finds the key idle. Any later one finds it awake, or held.
    IF new_seq = drained + 1 THEN
        PERFORM inturn.wake_key(topic, key);
    ELSIF new_seq % 32 = 0 THEN
        UPDATE inturn.key_sequence s SET known_seq = new_seq WHERE s.topic = append.topic AND s.key = append.key;
    END IF;
    RETURN new_seq;
END
$$;
COMMENT ON FUNCTION inturn.append IS 'Appends one command to a key, in the caller''s transaction, and returns its seq.';

-- functions/append_from_outbox.sql
-- Appends a row that was inserted into the view outbox, and puts its seq into the row. Trigger function.
--
-- Locks and raises what append does, and IT007 when the row brings its own seq.
CREATE OR REPLACE FUNCTION inturn.append_from_outbox() RETURNS trigger
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NEW.seq IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'IT007',
            MESSAGE = format('seq %s was given for key %L of topic %L', NEW.seq, NEW.key, NEW.topic),
            HINT = 'Leave seq out: the append assigns it. RETURNING seq gives it back.';
    END IF;
    NEW.seq := inturn.append(NEW.topic, NEW.key, NEW.name, NEW.payload, NEW.idempotency_key);
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION inturn.append_from_outbox IS 'Trigger of the view outbox: appends the inserted row.';

-- functions/claim.sql
-- Claims ready keys of a topic, the longest ready first, and returns where each stands.
--
-- since: claim only keys that became ready at this time or later. An applier passes the ready_at of its last
-- claim (the clock hand), so that it does not walk again over the index entries of the turns before, which stay
-- as long as any snapshot is held; from time to time it starts from -infinity again.
-- epoch is the number of the turn that this claim starts. A paused topic has no key to claim.
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
      AND NOT EXISTS (SELECT FROM inturn.topic t
                      WHERE t.name = claim.topic AND t.paused_at IS NOT NULL AND now < coalesce(t.paused_until, 'infinity'))
    ORDER BY c.ready_at LIMIT max_keys
    FOR UPDATE SKIP LOCKED;
END
$$;
COMMENT ON FUNCTION inturn.claim IS 'Claims ready keys of a topic until the end of the transaction.';

-- functions/claim_commands.sql
-- Claims ready keys as claim does, and returns their next commands in order: what a Python target applies.
--
-- A key comes with at most the topic's batch_commands; one whose next command has failed before, with that alone.
-- A key with nothing to apply comes as one row without a seq; it has to be finished too.
-- Locks and raises what claim does.
CREATE OR REPLACE FUNCTION inturn.claim_commands(topic text, since timestamptz DEFAULT '-infinity', max_keys integer DEFAULT 1)
RETURNS TABLE (
    key text, applied_seq bigint, epoch bigint, attempt integer, ready_at timestamptz,
    seq bigint, name text, payload jsonb, created_at timestamptz
)
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    claimed record;
    max_commands integer;
BEGIN
    SELECT t.batch_commands INTO max_commands FROM inturn.topic t WHERE t.name = claim_commands.topic;
    FOR claimed IN SELECT * FROM inturn.claim(topic, since, max_keys) LOOP
        RETURN QUERY
        SELECT l.key, claimed.applied_seq, claimed.epoch, claimed.attempts + 1, claimed.ready_at,
               l.seq, l.name, l.payload, l.created_at
        FROM inturn.command_log l
        WHERE l.topic = claim_commands.topic AND l.key = claimed.key AND l.seq > claimed.applied_seq
        ORDER BY l.seq LIMIT CASE WHEN claimed.attempts > 0 THEN 1 ELSE max_commands END;
        IF NOT FOUND THEN
            key := claimed.key; applied_seq := claimed.applied_seq; epoch := claimed.epoch;
            attempt := claimed.attempts + 1; ready_at := claimed.ready_at;
            RETURN NEXT;
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION inturn.claim_commands IS 'Claims ready keys and returns their next commands in order.';

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
        attempts = 0, last_error = NULL, failed_at = NULL, paused_at = NULL, paused_until = NULL,
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

-- functions/finish.sql
-- Ends turns: moves each key's cursor to its last applied command and lets it go idle, or to the back of the queue.
--
-- The arrays run in parallel, an element a key claimed in this transaction. A turn that applied nothing has
-- applied_seqs = from_seqs - 1: it leaves no entry in turn, and its key is ready again a little later, doubling
-- up to 100 ms, since a caller's transaction is open on it.
-- Locks the keys' rows in key_sequence, skipping those that a caller holds. From here to the commit the callers
-- of these keys wait: all handlers of a transaction run before it, and nothing after it.
-- Raises IT030 when this transaction does not hold the claim, or another turn was recorded since; IT031 outside READ COMMITTED.
CREATE OR REPLACE FUNCTION inturn.finish(
    topic text, keys text[], epochs bigint[], from_seqs bigint[], applied_seqs bigint[], applier text
) RETURNS void
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    sequences tid[];
    cursors tid[];
    drained boolean[];
    moved integer;
BEGIN
    PERFORM inturn.require_read_committed();

    -- Rows are looked up one by one, in subqueries: see move_cursors.
    SELECT array_agg(s.ctid ORDER BY t.position) INTO sequences
    FROM unnest(keys) WITH ORDINALITY t (key, position) LEFT JOIN LATERAL (
        SELECT s.ctid FROM inturn.key_sequence s
        WHERE s.topic = finish.topic AND s.key = t.key FOR UPDATE SKIP LOCKED LIMIT 1) s ON true;

    -- A statement of its own, whose snapshot is newer than the locks: in the statement above, a command that
    -- was committed while it ran would be missed, and its key would sleep for good.
    SELECT array_agg(t.sequence IS NOT NULL AND (
               SELECT true FROM inturn.command_log l
               WHERE l.topic = finish.topic AND l.key = t.key AND l.seq = t.applied_seq + 1) IS NULL
               ORDER BY t.position),
           array_agg((SELECT c.ctid FROM inturn.key_cursor c WHERE c.topic = finish.topic AND c.key = t.key)
               ORDER BY t.position)
    INTO drained, cursors
    FROM unnest(keys, applied_seqs, sequences) WITH ORDINALITY t (key, applied_seq, sequence, position);

    moved := inturn.move_cursors(sequences, cursors, drained, epochs, from_seqs, applied_seqs);
    IF moved <> cardinality(keys) THEN
        RAISE EXCEPTION USING ERRCODE = 'IT030',
            MESSAGE = format('%s of %s turns of topic %L were fenced off: their claims are not held any more',
                             cardinality(keys) - moved, cardinality(keys), topic);
    END IF;
    INSERT INTO inturn.turn (topic, key, epoch, from_seq, to_seq, outcome, applier, started_at)
    SELECT finish.topic, t.key, t.epoch, t.from_seq, t.applied_seq, 'applied', finish.applier, now()
    FROM unnest(keys, epochs, from_seqs, applied_seqs) t (key, epoch, from_seq, applied_seq)
    WHERE t.applied_seq >= t.from_seq;
END
$$;
COMMENT ON FUNCTION inturn.finish IS 'Ends turns that applied what they took: moves the cursors, lets drained keys go idle.';

-- functions/pass_over.sql
-- Passes over the commands from_seq to to_seq of a key, an entry in skip each; returns the last. Internal to fail and
-- the operators' functions.
--
-- to_seq: NULL for all that are committed now. They stay in the log. The caller holds the key's row in key_cursor and
-- moves its cursor; from_seq is its applied_seq + 1. Takes no other locks.
CREATE OR REPLACE FUNCTION inturn.pass_over(
    topic text, key text, from_seq bigint, to_seq bigint, epoch bigint, skipped_by text, reason text
) RETURNS bigint
LANGUAGE sql VOLATILE
SET enable_seqscan = off
AS $$
WITH passed AS (
    INSERT INTO inturn.skip (topic, key, seq, epoch, skipped_by, reason)
    SELECT l.topic, l.key, l.seq, pass_over.epoch, pass_over.skipped_by, left(pass_over.reason, 8000)
    FROM inturn.command_log l
    WHERE l.topic = pass_over.topic AND l.key = pass_over.key
      AND l.seq >= from_seq AND (l.seq <= to_seq OR to_seq IS NULL)
    RETURNING seq)
SELECT max(passed.seq) FROM passed
$$;
COMMENT ON FUNCTION inturn.pass_over IS 'Internal to fail and the operators'' functions: passes over commands, an entry in skip each.';

-- functions/fail.sql
-- Ends a turn whose command failed_seq failed: records what came before it as applied, and the error on the key.
--
-- verdict: what the handler asked for: retry (after retry_after, else after the usual wait), hold, or skip; NULL: nothing.
-- Without hold or skip, the key is ready again after a wait (see backoff), until the command has failed max_attempts
-- times; then the topic's on_exhausted decides: hold it, skip the command, or cancel-rest: skip all that is pending.
-- Returns the outcome: retrying, held, skipped or cancelled. The key cannot go idle here, so its callers are not locked.
-- Locks the key's row in key_cursor, which the claim has locked already.
-- Raises IT030 when this transaction does not hold the claim, or another turn was recorded since; IT031 outside READ COMMITTED.
CREATE OR REPLACE FUNCTION inturn.fail(
    topic text, key text, epoch bigint, from_seq bigint, failed_seq bigint,
    error text, applier text, verdict text DEFAULT NULL, retry_after interval DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    settings inturn.topic;
    failures integer;
    outcome text;
    passed_seq bigint;
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
    outcome := CASE
        WHEN verdict = 'hold' THEN 'held' WHEN verdict = 'skip' THEN 'skipped'
        WHEN failures < settings.max_attempts THEN 'retrying'
        WHEN settings.on_exhausted = 'hold' THEN 'held' WHEN settings.on_exhausted = 'skip' THEN 'skipped'
        ELSE 'cancelled' END;
    IF outcome IN ('skipped', 'cancelled') THEN
        passed_seq := inturn.pass_over(topic, key, failed_seq, CASE outcome WHEN 'skipped' THEN failed_seq END, epoch,
                                       CASE verdict WHEN 'skip' THEN 'handler' ELSE 'attempts' END, split_part(error, E'\n', 1));
    END IF;

    UPDATE inturn.key_cursor c SET
        applied_seq = coalesce(passed_seq, failed_seq - 1), epoch = fail.epoch, empty_turns = 0,
        attempts = CASE WHEN passed_seq IS NULL THEN failures ELSE 0 END,
        last_error = CASE WHEN passed_seq IS NULL THEN left(error, 8000) END,
        failed_at = CASE WHEN passed_seq IS NULL THEN clock_timestamp() END,
        ready_at = CASE WHEN outcome = 'retrying' THEN clock_timestamp() + CASE
                            WHEN retry_after IS NULL THEN inturn.backoff(settings, failures)
                            ELSE least(greatest(retry_after, '0'), '1 year') END
                        WHEN outcome <> 'held' THEN clock_timestamp() END,
        held_at = CASE outcome WHEN 'held' THEN clock_timestamp() END,
        paused_at = NULL, paused_until = NULL
    WHERE c.topic = fail.topic AND c.key = fail.key;
    INSERT INTO inturn.turn (topic, key, epoch, from_seq, to_seq, outcome, applier, started_at, error)
    VALUES (topic, key, epoch, from_seq, failed_seq - 1, outcome, applier, now(), left(error, 8000));
    RETURN outcome;
END
$$;
COMMENT ON FUNCTION inturn.fail IS 'Ends a turn whose last command failed: records the error, and what becomes of the key.';

-- functions/target_query.sql
-- Returns the query that calls a SQL target for the next commands of some keys. Internal to the appliers.
--
-- Its parameters: $1 topic, $2 keys, $3 their applied_seqs, $4 the most commands of a key, $5 the attempt, $6 a time
-- after which no further command is begun.
-- It gives one row: the keys that had commands, the last seq of each, and how many commands there were; that is NULL
-- when the clock was set back just then, and a command in the middle was left out.
-- Commands are called as they are read, never collected: a key's in order (LATERAL is a nested loop over a sorted
-- inner side), one key after the other. OFFSET 0 keeps the call below the grouping, which may sort. LIMIT keeps the
-- look at the clock above the sort: what it leaves out is the end of a key's commands, and all of the keys after it.
-- Takes no locks. Raises what target_function does.
CREATE OR REPLACE FUNCTION inturn.target_query(topic text, target text) RETURNS text
LANGUAGE sql STABLE
AS $$
SELECT format($query$
    SELECT array_agg(k.key), array_agg(k.last_seq),
           CASE WHEN bool_and(k.last_seq = k.applied_seq + k.commands) IS NOT false THEN coalesce(sum(k.commands), 0) END
    FROM (
        SELECT c.key, max(c.seq) AS last_seq, max(c.applied_seq) AS applied_seq, count(*) AS commands, count(c.effect) AS effects
        FROM (
            SELECT l.key, l.seq, t.applied_seq, %s(ROW($1, l.key, l.seq, l.name, l.payload, l.created_at, $5)::inturn.command) AS effect
            FROM unnest($2, $3) t (key, applied_seq) CROSS JOIN LATERAL (
                SELECT l.* FROM inturn.command_log l
                WHERE l.topic = $1 AND l.key = t.key AND l.seq > t.applied_seq ORDER BY l.seq LIMIT $4) l
            WHERE clock_timestamp() < $6
            OFFSET 0) c
        GROUP BY c.key
        OFFSET 0) k
$query$, inturn.target_function(topic, target)::oid::regproc)
$$;
COMMENT ON FUNCTION inturn.target_query IS 'Internal: the query that calls a SQL target for the next commands of some keys.';

-- functions/check_topic.sql
-- Refuses a topic whose settings are out of range. Internal to create_topic and set_topic. Takes no locks.
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
        WHEN (topic.on_exhausted IN ('hold', 'skip', 'cancel-rest')) IS NOT TRUE
            THEN format('on_exhausted is %s; hold, skip or cancel-rest are allowed', coalesce(quote_literal(topic.on_exhausted), 'NULL'))
        END;
BEGIN
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'IT011',
            MESSAGE = format('topic %s is refused: %s', coalesce(quote_literal(left(topic.name, 40)), 'NULL'), problem),
            HINT = 'Give another value, or leave the setting out.';
    ELSIF topic.target LIKE 'sql:%' THEN
        PERFORM inturn.target_function(topic.name, topic.target);
    END IF;
END
$$;
COMMENT ON FUNCTION inturn.check_topic IS 'Internal to create_topic and set_topic: refuses settings that are out of range.';

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
    max_payload_bytes integer DEFAULT 1048576, batch_commands integer DEFAULT 100, on_exhausted text DEFAULT 'hold'
) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    topic constant inturn.topic :=
        ROW(name, target, max_attempts, backoff_base, backoff_cap, max_payload_bytes, batch_commands, clock_timestamp(),
            on_exhausted, NULL, NULL);
BEGIN
    PERFORM inturn.check_topic(topic);
    INSERT INTO inturn.topic SELECT topic.* ON CONFLICT DO NOTHING;
    IF FOUND THEN
        RETURN true;
    END IF;
    PERFORM FROM inturn.topic t
    WHERE (t.name, t.target, t.max_attempts, t.backoff_base, t.backoff_cap, t.max_payload_bytes, t.batch_commands,
           t.on_exhausted)
        = (topic.name, topic.target, topic.max_attempts, topic.backoff_base, topic.backoff_cap,
           topic.max_payload_bytes, topic.batch_commands, topic.on_exhausted);
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'IT010',
            MESSAGE = format('topic %L exists already, with other settings', name),
            HINT = 'Compare with: SELECT * FROM inturn.topic.';
    END IF;
    RETURN false;
END
$$;
COMMENT ON FUNCTION inturn.create_topic IS 'Creates a topic; false when it is there already with the same settings.';

-- functions/list_appliers.sql
DROP FUNCTION inturn.list_appliers;
-- Lists the appliers of the last day: who serves what, whether it is alive, and what it does now. Takes no locks.
--
-- alive: its session is at work, or is there and was seen within 15 seconds; an applier says that it is there every
-- 5 seconds while it is not at work. doing: applying (since its transaction began), idle, or gone (since it was seen).
-- topic, key, seq: the first key of the transaction at work, and its next command; NULL where that cannot be told: it is
-- looked for among the keys of each topic that have been ready the longest. waits_for: what its query waits for.
-- Runs as its owner, so that an operator sees other users' sessions; the owner needs pg_monitor, or is a superuser.
CREATE FUNCTION inturn.list_appliers()
RETURNS TABLE (
    applier text, topics text[], host text, pid integer, backend_pid integer, revision text,
    started_at timestamptz, seen_at timestamptz, alive boolean, doing text, since timestamptz,
    topic text, key text, seq bigint, waits_for text
)
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
-- Before 18 a table that has to be read whole costs so much under these settings that it would be compiled for.
SET jit = off
AS $$
SELECT p.applier, p.topics, p.host, p.pid, p.backend_pid, p.revision, p.started_at, p.seen_at, d.alive,
       CASE WHEN NOT d.alive THEN 'gone' WHEN claim.xid IS NOT NULL THEN 'applying' ELSE 'idle' END,
       CASE WHEN NOT d.alive THEN p.seen_at WHEN claim.xid IS NOT NULL THEN a.xact_start ELSE a.state_change END,
       turn.topic, turn.key, turn.applied_seq + 1,
       CASE WHEN d.alive AND claim.xid IS NOT NULL THEN inturn.session_waits_for(a.pid) END
FROM inturn.applier p
LEFT JOIN pg_stat_activity a ON a.pid = p.backend_pid AND coalesce(a.backend_start, p.backend_start) = p.backend_start
CROSS JOIN LATERAL (SELECT inturn.is_alive(p, a.pid, a.state, a.query_start) AS alive) d
-- A transaction that has claimed a key has a number, and a lock of this mode on the table.
LEFT JOIN LATERAL (
    SELECT x.transactionid AS xid FROM pg_locks x JOIN pg_locks r ON r.pid = x.pid
    WHERE x.pid = a.pid AND x.locktype = 'transactionid' AND x.granted
      AND r.relation = 'inturn.key_cursor'::regclass AND r.mode = 'RowShareLock'
    ORDER BY age(x.transactionid) DESC LIMIT 1) claim ON d.alive
LEFT JOIN LATERAL (
    SELECT c.* FROM unnest(p.topics) t (name) CROSS JOIN LATERAL (
        SELECT c.topic, c.key, c.applied_seq, c.xmax AS locker FROM inturn.key_cursor c
        WHERE c.topic = t.name AND c.ready_at IS NOT NULL ORDER BY c.ready_at LIMIT 200) c
    WHERE c.locker = claim.xid LIMIT 1) turn ON claim.xid IS NOT NULL
ORDER BY d.alive DESC, p.applier
$$;
COMMENT ON FUNCTION inturn.list_appliers IS 'Lists the appliers of the last day, whether each is alive, and what it does now.';

-- functions/key_state.sql
-- Returns the state of a key: held, paused, retrying (its next command failed and is tried again), ready or idle.
-- Takes no locks. What is pending on a paused or held key it does not say.
CREATE OR REPLACE FUNCTION inturn.key_state(c inturn.key_cursor) RETURNS text
LANGUAGE sql STABLE
AS $$
SELECT CASE
    WHEN c.held_at IS NOT NULL THEN 'held'
    WHEN c.paused_at IS NOT NULL AND statement_timestamp() < coalesce(c.paused_until, 'infinity') THEN 'paused'
    WHEN c.ready_at IS NULL THEN 'idle'
    WHEN c.attempts > 0 THEN 'retrying'
    ELSE 'ready' END
$$;
COMMENT ON FUNCTION inturn.key_state IS 'The state of a key: held, paused, retrying, ready or idle.';

-- functions/keys_query.sql
DROP FUNCTION inturn.keys_query;
-- Returns the query by which list_keys reads the keys of one state, from that state's own index. Internal to list_keys.
--
-- state: one of key_state's; or deep: those in the states $6 on which more than 32 commands may be pending. Such a key's
-- known_seq is past its drained_seq, for every 32nd command of a key that is not drained moves known_seq.
-- order_by: what comes before the state's own order, with a comma at its end.
-- $1 topic, $2 pattern of the key, $3 least number pending, $4 appended by then at the latest: NULL for any; $5 how many.
-- What is pending is looked for by subqueries: from a join, or from EXISTS, a planner may read the whole log.
CREATE FUNCTION inturn.keys_query(state text, order_by text DEFAULT '') RETURNS text
LANGUAGE sql IMMUTABLE
AS $$
SELECT format($query$
SELECT c.*, CASE c.state WHEN 'held' THEN c.held_at WHEN 'paused' THEN c.paused_at ELSE c.ready_at END AS at
FROM inturn.topic t CROSS JOIN LATERAL (
    SELECT c.* FROM %s
    WHERE c.topic = t.name AND %s
      AND ($2 IS NULL OR c.key LIKE $2)
      AND ($3 IS NULL OR (SELECT l.seq FROM inturn.command_log l
                          WHERE l.topic = c.topic AND l.key = c.key AND l.seq = c.applied_seq + $3) IS NOT NULL)
      AND ($4 IS NULL OR (SELECT l.created_at FROM inturn.command_log l
                          WHERE l.topic = c.topic AND l.key = c.key AND l.seq = c.applied_seq + 1) <= $4)
    %s) c
WHERE $1 IS NULL OR t.name = $1
$query$,
    CASE WHEN state = 'deep' THEN 'inturn.key_sequence s CROSS JOIN LATERAL ' ELSE '' END
    || '(SELECT c.*, inturn.key_state(c) AS state FROM inturn.key_cursor c'
    -- OFFSET 0, or a planner may begin with the cursors.
    || CASE WHEN state = 'deep' THEN ' WHERE c.topic = s.topic AND c.key = s.key OFFSET 0' ELSE '' END || ') c',
    CASE state
        WHEN 'held' THEN 'c.held_at IS NOT NULL'
        WHEN 'retrying' THEN 'c.attempts > 0 AND c.ready_at IS NOT NULL'
        WHEN 'paused' THEN 'c.paused_at IS NOT NULL'
        WHEN 'ready' THEN 'c.ready_at IS NOT NULL'
        WHEN 'idle' THEN 'c.ready_at IS NULL AND c.held_at IS NULL'
        ELSE 's.topic = t.name AND s.known_seq > s.drained_seq AND s.known_seq - s.drained_seq >= coalesce($3, 0) - 32'
    END || CASE WHEN state = 'deep' THEN ' AND c.state = ANY ($6)' ELSE format(' AND c.state = %L', state) END,
    CASE WHEN state <> 'deep' THEN format('ORDER BY %s LIMIT $5', order_by || CASE state
        WHEN 'held' THEN 'c.held_at' WHEN 'paused' THEN 'c.paused_at' WHEN 'idle' THEN 'c.key' ELSE 'c.ready_at' END) END)
$$;
COMMENT ON FUNCTION inturn.keys_query IS 'Internal to list_keys: the query that reads the keys of one state.';

-- functions/list_keys.sql
DROP FUNCTION inturn.list_keys;
-- Lists keys and where they stand, the worst first: held, retrying (the next attempt soonest first), paused, ready (the
-- longest first), idle. Takes no locks.
--
-- of_topic, of_state: NULL for all; several states are separated by commas. of_like: a LIKE pattern that the key matches.
-- older_than: the next command was appended so long ago, or longer. min_lag: at least so many commands are pending.
-- sort_by: lag, age (of the next command) or attempts, the greatest first.
-- state: see key_state; what its topic does, topic_paused says. pending counts commands that are committed and not
-- applied; oldest_pending_at is when the next one was appended; last_error is of its latest attempt.
--
-- Each state is read from its own index, and only as far as max_keys: quick with millions of keys. Every filter is exact;
-- a filter by age, or by a lag of at most 32, looks into the log for each key that is not idle until it has found
-- max_keys: where a million are pending and none matches, that takes two seconds. Sorted by attempts, and by lags over 32,
-- the list is exact. Sorted by age or lesser lags it is exact while no state but idle has more than 20,000 keys that
-- pass the filters; beyond, it is that of the worst 20,000 of each such state, and a WARNING says so.
-- Raises IT044 for a state or sort_by that does not exist.
CREATE FUNCTION inturn.list_keys(
    of_topic text DEFAULT NULL, of_state text DEFAULT NULL, max_keys integer DEFAULT 50,
    of_like text DEFAULT NULL, older_than interval DEFAULT NULL, min_lag bigint DEFAULT NULL, sort_by text DEFAULT NULL
) RETURNS TABLE (
    topic text, key text, state text, applied_seq bigint, last_seq bigint, pending bigint,
    oldest_pending_at timestamptz, attempts integer, ready_at timestamptz, held_at timestamptz, last_error text,
    paused_at timestamptz, paused_until timestamptz, topic_paused boolean
)
LANGUAGE plpgsql STABLE
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET enable_sort = off
SET jit = off
AS $$
DECLARE
    ranks constant text[] := '{held,retrying,paused,ready,idle}';
    most bigint := greatest(max_keys, 20000);
    deep_lag constant bigint := 32;
    states text[] := coalesce(string_to_array(of_state, ','), ranks);
    appended_by constant timestamptz := statement_timestamp() - older_than;
    listed bigint := 0;
    passing bigint;
    bounded boolean := false;
    parts text[] := '{}';
    part text;
    details constant text := $query$
        SELECT c.topic, c.key, c.state, c.applied_seq, l.last_seq, l.last_seq - c.applied_seq, o.created_at,
               c.attempts, c.ready_at, c.held_at, c.last_error, c.paused_at, c.paused_until,
               t.paused_at IS NOT NULL AND statement_timestamp() < coalesce(t.paused_until, 'infinity')
        FROM (%s) c
        JOIN inturn.topic t ON t.name = c.topic
        CROSS JOIN LATERAL (
            SELECT greatest(c.applied_seq, (SELECT max(l.seq) FROM inturn.command_log l
                                            WHERE l.topic = c.topic AND l.key = c.key)) AS last_seq) l
        LEFT JOIN inturn.command_log o ON o.topic = c.topic AND o.key = c.key AND o.seq = c.applied_seq + 1
        ORDER BY %s array_position($7, c.state), c.at, c.key, c.topic LIMIT $8$query$;
BEGIN
    IF NOT states <@ ranks OR states = '{}' THEN
        RAISE EXCEPTION USING ERRCODE = 'IT044', MESSAGE = format('there is no state %L', of_state),
            HINT = 'Give one of held, retrying, paused, ready, idle, or several with commas between them.';
    ELSIF sort_by NOT IN ('lag', 'age', 'attempts') THEN
        RAISE EXCEPTION USING ERRCODE = 'IT044', MESSAGE = format('keys cannot be sorted by %L', sort_by),
            HINT = 'Give lag, age or attempts.';
    END IF;
    states := ARRAY(SELECT s FROM unnest(ranks) s WHERE s = ANY (states)
                    -- Nothing is pending on an idle key (P4).
                    AND (s <> 'idle' OR coalesce(min_lag, 0) <= 0 AND older_than IS NULL));
    IF states = '{}' THEN
        RETURN;
    END IF;

    IF sort_by IS NULL AND coalesce(min_lag, 0) <= deep_lag THEN
        -- State by state: the search for an idle key must not begin while there are others to list.
        FOREACH state IN ARRAY states LOOP
            RETURN QUERY EXECUTE format(details, inturn.keys_query(state), '')
            USING of_topic, of_like, min_lag, appended_by, max_keys - listed, states, ranks, max_keys - listed;
            GET DIAGNOSTICS passing = ROW_COUNT;
            listed := listed + passing;
            EXIT WHEN listed >= max_keys;
        END LOOP;
        RETURN;
    END IF;

    IF min_lag > deep_lag THEN
        parts := ARRAY[inturn.keys_query('deep')];
    ELSIF sort_by = 'attempts' THEN
        most := max_keys;
        parts := ARRAY(SELECT inturn.keys_query(s, CASE WHEN s IN ('ready', 'idle') THEN '' ELSE 'c.attempts DESC,' END)
                       FROM unnest(states) s);
    ELSE
        FOREACH state IN ARRAY states LOOP
            part := inturn.keys_query(state);
            IF state = 'idle' THEN
                part := part || format('LIMIT %s', max_keys);
            ELSE
                EXECUTE format('SELECT count(*) FROM (%s LIMIT $5) c', part)
                INTO passing USING of_topic, of_like, min_lag, appended_by, most + 1, states;
                bounded := bounded OR passing > most;
            END IF;
            parts := parts || part;
        END LOOP;
        IF bounded AND sort_by = 'lag' THEN
            parts := parts || inturn.keys_query('deep');
        END IF;
    END IF;
    FOR topic, key, state, applied_seq, last_seq, pending, oldest_pending_at, attempts, ready_at, held_at, last_error,
        paused_at, paused_until, topic_paused
    IN EXECUTE format(details, '(' || array_to_string(parts, CASE WHEN bounded THEN ') UNION (' ELSE ') UNION ALL (' END) || ')',
                      CASE sort_by WHEN 'lag' THEN 'l.last_seq - c.applied_seq DESC,' WHEN 'age' THEN 'o.created_at,'
                                   WHEN 'attempts' THEN 'c.attempts DESC,' END)
    USING of_topic, of_like, min_lag, appended_by, most, states, ranks, max_keys
    LOOP
        RETURN NEXT;
    END LOOP;
    IF bounded AND (sort_by = 'age' OR pending <= deep_lag) THEN
        RAISE WARNING USING MESSAGE = format('more than %s keys of a state: sorted among the worst %s of each', most, most);
    END IF;
END
$$;
COMMENT ON FUNCTION inturn.list_keys IS 'Lists keys and where they stand, the worst first.';

-- functions/topic_status.sql
DROP FUNCTION inturn.topic_status;
-- Sums up the topics: how many keys are in each state, what is pending, what was applied lately. Takes no locks.
--
-- of_topic: NULL for all. applied and failed count what turns did in the time of `recent` up to now.
-- How many keys are idle it does not say: no index knows. The states are counted from theirs, which for a million keys
-- takes half a second. What is pending is summed over the worst 50,000 keys of a topic; where it has more, each further
-- one counts as one command, and exact is false: more may be pending, and longer.
CREATE FUNCTION inturn.topic_status(of_topic text DEFAULT NULL, recent interval DEFAULT '5 minutes')
RETURNS TABLE (
    topic text, target text, held bigint, retrying bigint, paused bigint, ready bigint,
    pending bigint, oldest_pending_at timestamptz, exact boolean, applied bigint, failed bigint,
    paused_at timestamptz, paused_until timestamptz
)
LANGUAGE sql STABLE
SET enable_seqscan = off
SET jit = off
AS $$
-- Materialized, and of all topics: with a topic given, a planner may read all its turns by their primary key.
WITH lately AS MATERIALIZED (
    SELECT r.topic, sum(r.to_seq - r.from_seq + 1) AS applied, count(*) FILTER (WHERE r.outcome <> 'applied') AS failed
    FROM inturn.turn r
    WHERE r.finished_at > statement_timestamp() - recent GROUP BY r.topic
)
SELECT t.name, t.target, k.held, k.retrying, k.paused, k.ready,
       p.pending + greatest(k.held + k.retrying + k.paused + k.ready - p.keys, 0), p.oldest_pending_at,
       k.held + k.retrying + k.paused + k.ready <= p.keys,
       coalesce(y.applied, 0)::bigint, coalesce(y.failed, 0), s.paused_at, s.paused_until
FROM inturn.topic t
CROSS JOIN LATERAL (SELECT
    (SELECT count(*) FROM inturn.key_cursor c WHERE c.topic = t.name AND c.held_at IS NOT NULL) AS held,
    (SELECT count(*) FROM inturn.key_cursor c WHERE c.topic = t.name AND c.attempts > 0 AND c.ready_at IS NOT NULL
                                                AND inturn.key_state(c) = 'retrying') AS retrying,
    (SELECT count(*) FROM inturn.key_cursor c WHERE c.topic = t.name AND c.paused_at IS NOT NULL
                                                AND inturn.key_state(c) = 'paused') AS paused,
    (SELECT count(*) FROM inturn.key_cursor c WHERE c.topic = t.name AND c.ready_at IS NOT NULL
                                                AND inturn.key_state(c) = 'ready') AS ready) k
CROSS JOIN LATERAL (
    SELECT count(*) AS keys, coalesce(sum(l.pending), 0)::bigint AS pending, min(l.oldest_pending_at) AS oldest_pending_at
    FROM inturn.list_keys(t.name, 'held,retrying,paused,ready', 50000) l) p
LEFT JOIN inturn.topic s ON s.name = t.name AND s.paused_at IS NOT NULL
                        AND statement_timestamp() < coalesce(s.paused_until, 'infinity')
LEFT JOIN lately y ON y.topic = t.name
WHERE of_topic IS NULL OR t.name = of_topic ORDER BY t.name
$$;
COMMENT ON FUNCTION inturn.topic_status IS 'Sums up the topics: keys by state, what is pending, what was applied lately.';

-- functions/verify_rows.sql
-- Returns the rows that show a violation, as a JSON array; payloads are left out, errors are cut. Internal to verify.
-- Of each table the first few: turns by their epochs, others by their seq, from lo to hi. Takes no locks.
CREATE OR REPLACE FUNCTION inturn.verify_rows(topic text, key text, tables text[], epochs bigint[], lo bigint, hi bigint) RETURNS jsonb
LANGUAGE sql STABLE
SET enable_seqscan = off
AS $$
SELECT coalesce(jsonb_agg(jsonb_build_object('table', r.name) || r.content), '[]') FROM (
    SELECT 'key_sequence' AS name, to_jsonb(s) AS content FROM inturn.key_sequence s
    WHERE 'key_sequence' = ANY (tables) AND s.topic = verify_rows.topic AND s.key = verify_rows.key
    UNION ALL
    SELECT 'key_cursor', jsonb_strip_nulls(to_jsonb(c) || jsonb_build_object('last_error', left(c.last_error, 200)))
    FROM inturn.key_cursor c
    WHERE 'key_cursor' = ANY (tables) AND c.topic = verify_rows.topic AND c.key = verify_rows.key
    UNION ALL
    (SELECT 'command_log', jsonb_strip_nulls(to_jsonb(l) - 'payload') FROM inturn.command_log l
     WHERE 'command_log' = ANY (tables) AND l.topic = verify_rows.topic AND l.key = verify_rows.key
       AND l.seq BETWEEN lo AND hi
     ORDER BY l.seq LIMIT 5)
    UNION ALL
    (SELECT 'turn', jsonb_strip_nulls(to_jsonb(t) || jsonb_build_object('error', left(t.error, 200))) FROM inturn.turn t
     WHERE 'turn' = ANY (tables) AND t.topic = verify_rows.topic AND t.key = verify_rows.key
       AND t.epoch = ANY (epochs)
     ORDER BY t.epoch LIMIT 5)
    UNION ALL
    (SELECT 'skip', jsonb_strip_nulls(to_jsonb(k) || jsonb_build_object('reason', left(k.reason, 200))) FROM inturn.skip k
     WHERE 'skip' = ANY (tables) AND k.topic = verify_rows.topic AND k.key = verify_rows.key
       AND k.seq BETWEEN lo AND hi
     ORDER BY k.seq LIMIT 5)
    UNION ALL
    (SELECT 'operator_action', jsonb_strip_nulls(to_jsonb(a) - 'before' - 'after') FROM inturn.operator_action a
     WHERE 'operator_action' = ANY (tables) AND a.topic = verify_rows.topic AND a.key = verify_rows.key
       AND a.seq BETWEEN lo AND hi AND a.action IN ('skip', 'cancel-rest', 'replay', 'amend')
     ORDER BY a.id LIMIT 5)) r
$$;
COMMENT ON FUNCTION inturn.verify_rows IS 'Internal to verify: the rows that show a violation.';

-- functions/verify.sql
-- Recomputes the promises from what is stored, for the keys of a topic from from_key to to_key (NULL: to the end), and
-- returns a row a violation: a stable code, where, what is wrong, and the rows that show it. A key alone: give it twice.
--
-- One statement, so one snapshot, in which each key's rows fit together whoever is at work: run it at any time. Its
-- cost is that of reading the keys; verify_slice says which keys are a piece of work. Takes no locks.
-- It believes no constraint, in case one was dropped. What the rows must say, a key:
--   the log has 1, 2, 3, ... n; applied_seq is from 0 to n, drained_seq no further, and where the key went idle;
--   turns and skips cover 1 to applied_seq, each number once, under epochs 1, 2, 3, ... to the cursor's, that rise with seq;
--   each skip belongs to a turn that skipped or cancelled, or to the operator's action under its epoch, and the other way
--   round; what operators replayed and amended is in the log; and a key with something pending does not sleep.
-- Of times only the ends are compared: a turn's started_at is when its transaction began, and that may wait at the claim
-- until the turn before has ended. Clocks may step back, by a minute before it counts.
CREATE OR REPLACE FUNCTION inturn.verify(of_topic text, from_key text DEFAULT '', to_key text DEFAULT NULL)
RETURNS TABLE (violation text, topic text, key text, seq bigint, says text, rows jsonb)
LANGUAGE sql STABLE
-- Plans for a slice, made of scans in the primary keys' order, whatever the statistics say.
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_nestloop = off
SET max_parallel_workers_per_gather = 0
SET jit = off
SET work_mem = '32MB'
AS $$
WITH
-- A value, not a condition with OR: it bounds the scans of the indexes.
bound AS MATERIALIZED (
    SELECT coalesce(to_key, greatest(
        (SELECT max(l.key) FROM inturn.command_log l WHERE l.topic = of_topic),
        (SELECT max(s.key) FROM inturn.key_sequence s WHERE s.topic = of_topic),
        (SELECT max(c.key) FROM inturn.key_cursor c WHERE c.topic = of_topic),
        (SELECT max(t.key) FROM inturn.turn t WHERE t.topic = of_topic),
        (SELECT max(k.key) FROM inturn.skip k WHERE k.topic = of_topic),
        (SELECT max(a.key) FROM inturn.operator_action a WHERE a.topic = of_topic))) COLLATE "C" AS last_key
),
command AS MATERIALIZED (
    SELECT l.key, count(*) AS commands, max(l.seq) AS last_seq, count(*) FILTER (WHERE l.seq <> l.before + 1) AS faults
    FROM (SELECT l.key, l.seq, lag(l.seq, 1, 0::bigint) OVER (PARTITION BY l.key ORDER BY l.seq) AS before
          FROM inturn.command_log l
          WHERE l.topic = of_topic AND l.key >= from_key COLLATE "C" AND l.key <= (SELECT b.last_key FROM bound b)) l
    GROUP BY l.key
),
sequence AS (
    SELECT s.*, row_number() OVER (PARTITION BY s.key) AS copy FROM inturn.key_sequence s
    WHERE s.topic = of_topic AND s.key >= from_key COLLATE "C" AND s.key <= (SELECT b.last_key FROM bound b)
),
cursor AS (
    SELECT c.*, row_number() OVER (PARTITION BY c.key) AS copy FROM inturn.key_cursor c
    WHERE c.topic = of_topic AND c.key >= from_key COLLATE "C" AND c.key <= (SELECT b.last_key FROM bound b)
),
-- Runs of numbers that were passed over under one epoch.
passed AS MATERIALIZED (
    SELECT k.key, k.epoch, k.by_operator, min(k.seq) AS lo, max(k.seq) AS hi, max(k.skipped_at) AS ended_at
    FROM (SELECT k.key, k.epoch, k.seq, k.skipped_at, k.skipped_by = 'operator' AS by_operator,
                 k.seq - row_number() OVER (PARTITION BY k.key, k.epoch, k.skipped_by = 'operator' ORDER BY k.seq) AS run
          FROM inturn.skip k
          WHERE k.topic = of_topic AND k.key >= from_key COLLATE "C" AND k.key <= (SELECT b.last_key FROM bound b)) k
    GROUP BY k.key, k.epoch, k.by_operator, k.run
),
-- Everything that moved a cursor. kind: 0 a turn, 1 what it passed over, 2 what an operator passed over.
move AS MATERIALIZED (
    SELECT t.key, t.epoch, 0 AS kind, t.from_seq AS lo, t.to_seq AS hi, t.outcome, t.error IS NULL AS well,
           t.started_at, t.finished_at AS ended_at
    FROM inturn.turn t
    WHERE t.topic = of_topic AND t.key >= from_key COLLATE "C" AND t.key <= (SELECT b.last_key FROM bound b)
    UNION ALL
    SELECT p.key, p.epoch, CASE WHEN p.by_operator THEN 2 ELSE 1 END, p.lo, p.hi, NULL, NULL, NULL, p.ended_at FROM passed p
),
reach AS (SELECT m.key, max(m.hi) AS hi, max(m.epoch) AS epoch FROM move m GROUP BY m.key),
key AS MATERIALIZED (
    SELECT key, k.commands, coalesce(k.last_seq, 0) AS last_seq, k.faults,
           coalesce(r.hi, 0) AS hi, coalesce(r.epoch, 0) AS last_epoch,
           s.copy AS sequences, s.drained_seq, s.known_seq, c.copy AS cursors, coalesce(c.applied_seq, 0) AS applied_seq,
           c.epoch, c.ready_at, c.held_at, c.paused_at, c.paused_until,
           c.paused_at IS NOT NULL AND c.paused_until IS NULL AS paused
    FROM command k FULL JOIN sequence s USING (key) FULL JOIN cursor c USING (key) FULL JOIN reach r USING (key)
),
-- The moves by number: how far the ones before it reach. A turn that applied nothing covers nothing.
cover AS (
    SELECT m.key, m.epoch, m.lo, m.hi, max(m.hi) OVER w AS reached, lag(m.epoch) OVER w AS epoch_before
    FROM move m WHERE m.hi >= m.lo
    WINDOW w AS (PARTITION BY m.key ORDER BY m.lo, m.epoch, m.kind ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
),
-- The moves by epoch, each with its neighbours.
walk AS (
    SELECT m.*, lag(m.epoch) OVER w AS epoch_before, lag(m.lo) OVER w AS lo_before,
           lag(m.kind) OVER w = 0 AND lag(m.outcome) OVER w IN ('skipped', 'cancelled') AS after_skipping,
           lead(m.epoch) OVER w AS epoch_after, lead(m.kind) OVER w AS kind_after,
           lead(m.lo) OVER w AS lo_after, lead(m.hi) OVER w AS hi_after, lag(m.ended_at) OVER w AS ended_before
    FROM move m WINDOW w AS (PARTITION BY m.key ORDER BY m.epoch, m.kind, m.lo)
),
action AS (
    SELECT a.*, row_number() OVER (PARTITION BY a.key, a.seq, a.action ORDER BY a.id DESC) = 1 AS latest
    FROM inturn.operator_action a
    WHERE a.topic = of_topic AND a.key >= from_key COLLATE "C" AND a.key <= (SELECT b.last_key FROM bound b)
      AND a.action IN ('skip', 'cancel-rest', 'replay', 'amend')
),
-- An operator's entries in skip, and the action that says so. after is free JSON: compared, never cast.
acted AS (
    SELECT coalesce(p.key, a.key) AS key, p.epoch, coalesce(p.lo, a.seq) AS lo, coalesce(p.hi, a.seq) AS hi, a.action
    FROM (SELECT * FROM passed p WHERE p.by_operator) p
    FULL JOIN (SELECT * FROM action a WHERE a.action IN ('skip', 'cancel-rest')) a
      ON a.key = p.key AND a.seq = p.lo AND a.after -> 'epoch' = to_jsonb(p.epoch)
     AND a.after -> 'applied_seq' = to_jsonb(p.hi)
    WHERE p.key IS NULL OR a.key IS NULL
),
finding (violation, key, seq, says, tables, epochs, lo, hi) AS (
    SELECT 'topic-missing', '', NULL::bigint, 'there are rows of this topic, and no such topic',
           '{}'::text[], '{}'::bigint[], NULL::bigint, NULL::bigint
    WHERE from_key = '' AND EXISTS (SELECT FROM key) AND NOT EXISTS (SELECT FROM inturn.topic t WHERE t.name = of_topic)

    -- P1
    UNION ALL
    SELECT CASE WHEN l.seq < 1 THEN 'seq-below-one' WHEN l.seq = l.before THEN 'seq-repeated' ELSE 'seq-missing' END,
           k.key, CASE WHEN l.seq > l.before + 1 AND l.seq > 0 THEN greatest(l.before, 0) + 1 ELSE l.seq END,
           CASE WHEN l.seq < 1 THEN format('command %s has a number below 1', l.seq)
                WHEN l.seq = l.before THEN format('there is more than one command %s', l.seq)
                ELSE format('command%s missing before %s', CASE WHEN l.before + 2 = l.seq THEN format(' %s is', l.before + 1)
                            ELSE format('s %s to %s are', greatest(l.before, 0) + 1, l.seq - 1) END, l.seq) END,
           '{key_sequence,key_cursor,command_log}', '{}', l.before, l.seq
    FROM key k CROSS JOIN LATERAL (
        SELECT l.seq, lag(l.seq, 1, 0::bigint) OVER (ORDER BY l.seq) AS before FROM inturn.command_log l
        WHERE l.topic = of_topic AND l.key = k.key) l
    WHERE k.faults > 0 AND l.seq <> l.before + 1 AND NOT (l.seq = 1 AND l.before < 1)
    UNION ALL
    SELECT 'sequence-row-missing', k.key, NULL, 'its row in key_sequence is missing', '{key_cursor}', '{}', NULL, NULL
    FROM key k WHERE k.sequences IS NULL
    UNION ALL
    SELECT 'sequence-row-repeated', k.key, NULL, 'it has more than one row in key_sequence',
           '{key_sequence}', '{}', NULL, NULL
    FROM key k WHERE k.sequences > 1
    UNION ALL
    SELECT 'sequence-ahead', k.key, k.last_seq,
           format('its last command is %s, yet the next one would get a number after %s',
                  k.last_seq, greatest(k.drained_seq, k.known_seq)),
           '{key_sequence,key_cursor}', '{}', NULL, NULL
    FROM key k WHERE greatest(k.drained_seq, k.known_seq) > k.last_seq

    -- P3
    UNION ALL
    SELECT 'cursor-row-missing', k.key, NULL, 'its row in key_cursor is missing', '{key_sequence}', '{}', NULL, NULL
    FROM key k WHERE k.cursors IS NULL AND (k.commands > 0 OR k.hi > 0)
    UNION ALL
    SELECT 'cursor-row-repeated', k.key, NULL, 'it has more than one row in key_cursor', '{key_cursor}', '{}', NULL, NULL
    FROM key k WHERE k.cursors > 1
    UNION ALL
    SELECT 'cursor-outside', k.key, k.applied_seq,
           format('applied_seq is %s, the commands are 1 to %s', k.applied_seq, k.last_seq),
           '{key_cursor}', '{}', NULL, NULL
    FROM key k WHERE k.applied_seq < 0 OR k.applied_seq > k.last_seq
    UNION ALL
    SELECT 'passed-unaccounted', k.key, greatest(c.reached, 0) + 1,
           format('applied_seq is %s, yet no turn and no skip accounts for %s', k.applied_seq,
                  concat_ws(' to ', greatest(c.reached, 0) + 1,
                            nullif(least(c.lo - 1, k.applied_seq), greatest(c.reached, 0) + 1))),
           '{key_cursor,turn,skip}', ARRAY[c.epoch_before, c.epoch], c.reached, c.lo
    FROM (SELECT * FROM cover c WHERE c.lo > coalesce(c.reached, 0) + 1) c JOIN key k USING (key)
    WHERE greatest(c.reached, 0) < k.applied_seq
    UNION ALL
    SELECT 'passed-unaccounted', k.key, k.hi + 1,
           format('applied_seq is %s, yet no turn and no skip accounts for %s', k.applied_seq,
                  concat_ws(' to ', k.hi + 1, nullif(k.applied_seq, k.hi + 1))),
           '{key_cursor,turn,skip}', ARRAY[k.last_epoch], k.hi, k.applied_seq
    FROM key k WHERE k.hi < k.applied_seq
    UNION ALL
    SELECT 'passed-beyond-cursor', k.key, greatest(m.lo, k.applied_seq + 1),
           format('applied_seq is %s, yet epoch %s %s %s', k.applied_seq, m.epoch,
                  CASE m.kind WHEN 0 THEN 'applied' ELSE 'passed over' END, concat_ws(' to ', m.lo, nullif(m.hi, m.lo))),
           '{key_cursor,turn,skip}', ARRAY[m.epoch], m.lo, m.hi
    FROM move m JOIN key k USING (key) WHERE k.cursors IS NOT NULL AND k.hi > k.applied_seq AND m.hi > k.applied_seq
    UNION ALL
    SELECT 'passed-twice', c.key, c.lo,
           format('%s was applied or passed over twice, the second time in epoch %s',
                  concat_ws(' to ', c.lo, nullif(least(c.hi, c.reached), c.lo)), c.epoch),
           '{key_cursor,turn,skip}', ARRAY[c.epoch_before, c.epoch], c.lo, least(c.hi, c.reached)
    FROM cover c WHERE c.lo <= c.reached

    -- P2
    UNION ALL
    SELECT f.violation, w.key, CASE f.violation WHEN 'turn-without-skip' THEN w.hi + 1 ELSE w.lo END,
           -- Here and not among the VALUES: it is worked out for violations only.
           CASE f.violation
               WHEN 'epoch-repeated' THEN format('epoch %s was used more than once', w.epoch)
               WHEN 'epoch-below-one' THEN format('epoch %s is below 1', w.epoch)
               WHEN 'epoch-missing' THEN format('nothing is recorded of epoch %s',
                   concat_ws(' to ', greatest(w.epoch_before, 0) + 1, nullif(w.epoch - 1, greatest(w.epoch_before, 0) + 1)))
               WHEN 'epoch-order' THEN format('epoch %s begins at %s, epoch %s before it at %s',
                   w.epoch, w.lo, w.epoch_before, w.lo_before)
               WHEN 'turn-order' THEN format('epoch %s ended at %s, epoch %s before it at %s',
                   w.epoch, w.ended_at, w.epoch_before, w.ended_before)
               WHEN 'turn-malformed' THEN format('epoch %s cannot be: %s, applied %s to %s, %s error, from %s to %s',
                   w.epoch, w.outcome, w.lo, w.hi, CASE WHEN w.well THEN 'no' ELSE 'an' END, w.started_at, w.ended_at)
               WHEN 'turn-without-skip' THEN format('epoch %s %s %s, and skip does not say so', w.epoch, w.outcome, w.hi + 1)
               ELSE format('%s was passed over in epoch %s by no turn that skipped or cancelled',
                   concat_ws(' to ', w.lo, nullif(w.hi, w.lo)), w.epoch) END,
           '{key_cursor,turn,skip}', ARRAY[w.epoch_before, w.epoch], w.lo, w.hi
    FROM walk w CROSS JOIN LATERAL (VALUES
        ('epoch-repeated', w.epoch = w.epoch_before AND (w.kind = 1 AND w.after_skipping) IS NOT TRUE),
        ('epoch-below-one', w.epoch < 1),
        ('epoch-missing', w.epoch > greatest(w.epoch_before, 0) + 1),
        ('epoch-order', w.epoch > w.epoch_before AND w.lo < w.lo_before),
        ('turn-order', w.ended_at < w.ended_before - interval '1 minute'),
        ('turn-malformed', w.kind = 0 AND (
            w.outcome IN ('applied', 'retrying', 'held', 'skipped', 'cancelled') AND w.well = (w.outcome = 'applied')
            AND w.lo >= 1 AND w.hi >= CASE w.outcome WHEN 'applied' THEN w.lo ELSE w.lo - 1 END
            AND w.ended_at >= w.started_at - interval '1 minute') IS NOT TRUE),
        ('turn-without-skip', w.kind = 0 AND w.outcome IN ('skipped', 'cancelled') AND (
            w.epoch_after = w.epoch AND w.kind_after = 1 AND w.lo_after = w.hi + 1
            AND (w.outcome = 'cancelled' OR w.hi_after = w.lo_after)) IS NOT TRUE),
        ('skip-without-turn', w.kind = 1 AND (w.epoch = w.epoch_before AND w.after_skipping) IS NOT TRUE)
    ) f (violation, broken)
    WHERE f.broken
    UNION ALL
    SELECT CASE WHEN k.last_epoch < k.epoch THEN 'epoch-missing' ELSE 'epoch-ahead' END, k.key, NULL,
           format('the cursor is at epoch %s, the last one recorded is %s', k.epoch, k.last_epoch),
           '{key_cursor,turn}', ARRAY[k.last_epoch], NULL, NULL
    FROM key k WHERE k.last_epoch <> k.epoch

    -- P4
    UNION ALL
    SELECT 'idle-pending', k.key, k.applied_seq + 1,
           format('it is idle with commands pending, from %s to %s: no applier will come', k.applied_seq + 1, k.last_seq),
           '{key_sequence,key_cursor,command_log}', '{}', k.applied_seq + 1, k.applied_seq + 1
    FROM key k WHERE k.last_seq > k.applied_seq AND k.cursors IS NOT NULL
      AND k.ready_at IS NULL AND k.held_at IS NULL AND NOT k.paused
    UNION ALL
    SELECT CASE WHEN k.held_at IS NOT NULL THEN 'held-and-ready' ELSE 'paused-and-ready' END, k.key, k.applied_seq + 1,
           format('it is %s, and ready at %s',
                  CASE WHEN k.held_at IS NOT NULL THEN 'held' ELSE 'paused for good' END, k.ready_at),
           '{key_cursor}', '{}', NULL, NULL
    FROM key k WHERE k.ready_at IS NOT NULL AND (k.held_at IS NOT NULL OR k.paused)
    UNION ALL
    SELECT 'drained-outside', k.key, k.drained_seq,
           format('drained_seq is %s, applied_seq %s: %s', k.drained_seq, k.applied_seq,
                  CASE WHEN k.drained_seq > k.applied_seq THEN 'it cannot be further'
                       ELSE 'the next command will not wake the key' END),
           '{key_sequence,key_cursor}', '{}', NULL, NULL
    FROM key k WHERE k.cursors IS NOT NULL AND (k.drained_seq > k.applied_seq OR k.drained_seq < 0
        OR k.drained_seq <> k.applied_seq AND k.ready_at IS NULL AND k.held_at IS NULL AND NOT k.paused)

    -- The operators.
    UNION ALL
    SELECT CASE WHEN a.action IS NULL THEN 'skip-without-action' ELSE 'action-without-skip' END, a.key, a.lo,
           CASE WHEN a.action IS NULL THEN format('an operator passed over %s in epoch %s, and no action says so',
                                                  concat_ws(' to ', a.lo, nullif(a.hi, a.lo)), a.epoch)
                ELSE format('an operator''s %s of %s is recorded, and skip does not have what it passed over',
                            a.action, a.lo) END,
           '{key_cursor,skip,operator_action}', '{}', a.lo, a.hi
    FROM acted a
    UNION ALL
    SELECT 'replay-missing', a.key, a.seq,
           format('an operator replayed %s as %s, and the log has no such command', a.seq, a.after ->> 'seq'),
           '{operator_action,command_log}', '{}', a.seq, a.seq
    -- Looked up one by one: as NOT EXISTS it would be a join that reads the whole topic.
    FROM action a WHERE a.action = 'replay' AND (
        SELECT true FROM inturn.command_log l WHERE l.topic = of_topic AND l.key = a.key
          AND l.idempotency_key = 'inturn.replay:' || a.seq AND to_jsonb(l.seq) = a.after -> 'seq' LIMIT 1) IS NULL
    UNION ALL
    SELECT 'amend-missing', a.key, a.seq, format('an operator amended %s, and the log has it otherwise', a.seq),
           '{operator_action,command_log}', '{}', a.seq, a.seq
    FROM action a WHERE a.action = 'amend' AND a.latest AND (
        SELECT true FROM inturn.command_log l WHERE l.topic = of_topic AND l.key = a.key AND l.seq = a.seq
          AND jsonb_build_object('name', l.name, 'payload', l.payload) = a.after LIMIT 1) IS NULL
    UNION ALL
    SELECT 'replay-without-action', l.key, l.seq, format('command %s is a replay, and no action says so', l.seq),
           '{command_log}', '{}', l.seq, l.seq
    FROM inturn.command_log l
    WHERE l.topic = of_topic AND l.key >= from_key COLLATE "C" AND l.key <= (SELECT b.last_key FROM bound b)
      AND l.idempotency_key >= 'inturn.replay:' AND l.idempotency_key < 'inturn.replay;'
      AND NOT EXISTS (SELECT FROM action a
                      WHERE a.action = 'replay' AND a.key = l.key AND a.after -> 'seq' = to_jsonb(l.seq))
)
SELECT f.violation, of_topic, f.key, f.seq, f.says, inturn.verify_rows(of_topic, f.key, f.tables, f.epochs, f.lo, f.hi)
FROM finding f ORDER BY f.key COLLATE "C", f.violation, f.seq
$$;
COMMENT ON FUNCTION inturn.verify IS 'Recomputes the promises from what is stored, and returns a row a violation.';

-- functions/explain_append.sql
-- Explains a key whose next command is being appended by a transaction that is still open. Internal to why. Takes no locks.
--
-- sessions: from session_facts, of which one is the caller. waiting: how many other callers wait for it.
CREATE OR REPLACE FUNCTION inturn.explain_append(sessions jsonb, waiting bigint, next_seq bigint)
RETURNS TABLE (cause text, since timestamptz, says text, to_do text, details jsonb)
LANGUAGE sql STABLE
AS $$
SELECT 'appending', (sessions->0->>'since')::timestamptz,
    format('Its next command, %s, is being appended by a transaction that is still open: %s', next_seq,
           inturn.name_sessions(sessions))
    || CASE waiting WHEN 0 THEN '' WHEN 1 THEN '. 1 more caller waits behind it'
                    ELSE format('. %s more callers wait behind it, one behind the other', waiting) END,
    CASE jsonb_array_length(sessions)
        WHEN 0 THEN 'psql "$INTURN_DSN" -c "SELECT * FROM pg_prepared_xacts"'
        ELSE format('psql "$INTURN_DSN" -c "SELECT pg_terminate_backend(%s)"  # if it will never commit',
                    CASE jsonb_array_length(sessions) WHEN 1 THEN sessions->0->>'backend' ELSE 'BACKEND' END) END,
    jsonb_build_object('sessions', sessions, 'waiting', waiting, 'next_seq', next_seq)
$$;
COMMENT ON FUNCTION inturn.explain_append IS 'Internal to why: explains a key whose next command is being appended.';

-- functions/explain_unknown.sql
-- Explains a key that has no cursor: its first command is being appended, or there is no such key. Internal to why.
-- Locks what is_first_append_open does, for a moment.
CREATE OR REPLACE FUNCTION inturn.explain_unknown(topic text, key text)
RETURNS TABLE (cause text, since timestamptz, says text, to_do text, details jsonb)
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    sessions jsonb;
    near jsonb;
BEGIN
    IF inturn.is_first_append_open(topic, key) THEN
        -- No row to be seen names the one.
        SELECT jsonb_agg(s.value ORDER BY s.position) INTO sessions
        FROM jsonb_array_elements(inturn.session_facts(inturn.row_holders('0', 'inturn.key_sequence')))
            WITH ORDINALITY s (value, position) WHERE s.value->>'kind' IN ('caller', 'operator');
        RETURN QUERY SELECT * FROM inturn.explain_append(coalesce(sessions, '[]'), 0, 1);
        RETURN;
    END IF;
    SELECT coalesce(jsonb_agg(jsonb_build_object('topic', n.topic, 'key', n.key)), '[]')
    INTO near FROM inturn.near_keys(topic, key) n;
    RETURN QUERY SELECT 'no_such_key', NULL::timestamptz,
        CASE WHEN topic IS NULL THEN 'No topic has such a key' ELSE 'The topic has no such key' END
            || ': nothing was ever committed on it. Keys are compared byte by byte',
        CASE WHEN near = '[]' THEN 'inturn keys' ELSE '' END, jsonb_build_object('near', near);
END
$$;
COMMENT ON FUNCTION inturn.explain_unknown IS 'Internal to why: explains a key that has no cursor.';

-- functions/explain_standstill.sql
-- Explains a key that stands still because it is held, or because it or its topic is paused; nothing else.
-- Internal to why. Takes no locks.
--
-- next: the key's next command; its seq is NULL when nothing is pending.
CREATE OR REPLACE FUNCTION inturn.explain_standstill(c inturn.key_cursor, t inturn.topic, next inturn.command_log)
RETURNS TABLE (cause text, since timestamptz, says text, to_do text, details jsonb)
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    whole constant boolean := inturn.key_state(c) <> 'paused';
    action inturn.operator_action;
    last timestamptz;
BEGIN
    IF c.held_at IS NOT NULL THEN
        RETURN QUERY SELECT 'held', c.held_at,
            format('Its next command, %s, failed for good at attempt %s of %s: %s', coalesce(inturn.name_command(next), '?'),
                   c.attempts, t.max_attempts, inturn.shorten(c.last_error, 200)),
            concat_ws(E'\n', 'inturn show --topic {topic} --error {key}', 'inturn retry --topic {topic} {key}  # once its cause is put right',
                      format('inturn skip --topic {topic} --seq %s --reason TEXT {key}  # or go on without it', c.applied_seq + 1)),
            jsonb_build_object('error', c.last_error, 'attempts', c.attempts, 'max_attempts', t.max_attempts,
                               'seq', c.applied_seq + 1, 'name', next.name);
        RETURN;
    ELSIF whole AND (t.paused_at IS NULL OR coalesce(t.paused_until, 'infinity') <= clock_timestamp()) THEN
        RETURN;
    END IF;
    last := CASE WHEN whole THEN t.paused_until ELSE c.paused_until END;
    SELECT * INTO action FROM inturn.operator_action a
    WHERE a.topic = t.name AND a.key = CASE WHEN whole THEN '' ELSE c.key END AND a.action = 'pause' ORDER BY a.id DESC LIMIT 1;
    RETURN QUERY SELECT CASE WHEN whole THEN 'topic_paused' ELSE 'paused' END,
        CASE WHEN whole THEN t.paused_at ELSE c.paused_at END,
        format('%s paused %s %s%s%s', coalesce(action.acting_as, action.os_user, action.db_user, 'Somebody'),
               CASE WHEN whole THEN 'its whole topic' ELSE 'it' END,
               coalesce('until ' || to_char(last AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'), 'for good'),
               coalesce(': ' || inturn.shorten(action.reason, 200), '. No reason was given'),
               CASE WHEN next.seq IS NULL THEN '. Nothing is pending on it now' ELSE '' END),
        CASE WHEN whole THEN 'inturn resume --topic {topic}' ELSE 'inturn resume --topic {topic} {key}' END,
        jsonb_build_object('until', last, 'reason', action.reason, 'db_user', action.db_user, 'os_user', action.os_user,
                           'acting_as', action.acting_as);
END
$$;
COMMENT ON FUNCTION inturn.explain_standstill IS 'Internal to why: explains a key that is held or paused.';

-- functions/explain_empty.sql
DROP FUNCTION inturn.explain_empty;
-- Explains a key on which nothing committed is pending: a caller's transaction is open on it, or it is idle.
-- Internal to why. Takes no locks.
--
-- locked: its row in key_sequence is.
CREATE FUNCTION inturn.explain_empty(c inturn.key_cursor, locked boolean)
RETURNS TABLE (cause text, since timestamptz, says text, to_do text, details jsonb)
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    sequence record;
    last inturn.turn;
BEGIN
    IF locked THEN
        -- All that wait for a row stand in its queue, the lock on its place.
        SELECT s.xmax AS locker, (SELECT count(DISTINCT l.pid) FROM pg_locks l
                                  WHERE l.locktype = 'tuple' AND l.relation = s.tableoid
                                    AND (l.page, l.tuple) = ((s.ctid::text::point)[0], (s.ctid::text::point)[1])) AS waiting
        INTO sequence FROM inturn.key_sequence s WHERE s.topic = c.topic AND s.key = c.key;
        RETURN QUERY SELECT * FROM inturn.explain_append(
            inturn.session_facts(inturn.row_holders(sequence.locker, 'inturn.key_sequence')), sequence.waiting, c.applied_seq + 1);
        RETURN;
    END IF;
    SELECT * INTO last FROM inturn.turn u WHERE u.topic = c.topic AND u.key = c.key ORDER BY u.epoch DESC LIMIT 1;
    RETURN QUERY SELECT 'nothing_pending', last.finished_at,
        format('Every command that was committed on it has had its turn, up to %s%s', c.applied_seq,
               coalesce('; the last turn was that of ' || last.applier, '')),
        'inturn show --topic {topic} {key}  # what is not there was not committed',
        jsonb_build_object('applied_seq', c.applied_seq, 'applier', last.applier, 'applied_at', last.finished_at);
END
$$;
COMMENT ON FUNCTION inturn.explain_empty IS 'Internal to why: explains a key on which nothing is pending.';

-- functions/explain_unserved.sql
-- Explains why nobody serves a topic: the schema does not fit its appliers, or there is none. Internal to why. Takes no locks.
--
-- It is the schema when the applier that was seen last serves another revision, or when a session is called as an
-- applier's and has not announced itself: an older inturn. It may do so in its first two seconds.
CREATE OR REPLACE FUNCTION inturn.explain_unserved(t inturn.topic)
RETURNS TABLE (cause text, says text, to_do text, details jsonb)
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    revision constant text := (SELECT v.version_num FROM inturn.schema_version v);
    last record;
    old jsonb;
BEGIN
    SELECT * INTO last FROM inturn.list_appliers() a WHERE t.name = ANY (a.topics) ORDER BY a.seen_at DESC LIMIT 1;
    SELECT inturn.session_facts(array_agg(a.pid)) INTO old FROM pg_stat_activity a
    WHERE a.datname = current_database() AND a.application_name = 'inturn apply'
      AND a.query <> '<insufficient privilege>' AND a.query NOT LIKE 'LISTEN %'
      AND a.backend_start < clock_timestamp() - interval '2 seconds'
      AND NOT EXISTS (SELECT FROM inturn.applier p WHERE p.backend_pid = a.pid AND p.backend_start = a.backend_start);
    IF last.revision <> revision THEN
        RETURN QUERY SELECT 'schema_mismatch',
            format('Its applier %s on %s serves schema revision %s, and the database is at %s; it was last seen at %s',
                   last.applier, last.host, last.revision, revision, to_char(last.seen_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"')),
            CASE WHEN last.revision < revision THEN 'pip install --upgrade inturn  # there; then start inturn apply again'
                 ELSE 'inturn upgrade' END,
            jsonb_build_object('revision', revision, 'applier_revision', last.revision, 'applier', last.applier, 'host', last.host,
                               'seen_at', last.seen_at);
    ELSIF old <> '[]' THEN
        RETURN QUERY SELECT 'schema_mismatch',
            format('Its applier seems to be of an older inturn, which does not fit schema revision %s: %s', revision, inturn.name_sessions(old)),
            'pip install --upgrade inturn  # there; then start inturn apply again',
            jsonb_build_object('revision', revision, 'sessions', old);
    ELSE
        RETURN QUERY SELECT 'no_applier',
            format('It is ready, and no applier serves its topic (target %s): %s', t.target, CASE
                       WHEN last.applier IS NULL THEN 'none was seen in the last day'
                       ELSE format('the last one, %s on %s, was seen at %s', last.applier, last.host,
                                   to_char(last.seen_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"')) END),
            CASE WHEN t.target = 'python' THEN 'inturn apply --app MODULE:APPLIER --topic {topic}'
                 ELSE E'inturn apply --topic {topic}\npsql "$INTURN_DSN" -c "CALL inturn.apply()"  # or in SQL, once' END,
            jsonb_build_object('target', t.target, 'last_applier', last.applier, 'host', last.host, 'seen_at', last.seen_at);
    END IF;
END
$$;
COMMENT ON FUNCTION inturn.explain_unserved IS 'Internal to why: explains why nobody serves a topic.';

-- functions/explain_ready.sql
-- Explains a key that has a next command and is not in anybody's hands: it is tried again later, no applier is there for
-- it, or others are before it. Internal to why. Takes no locks.
CREATE OR REPLACE FUNCTION inturn.explain_ready(c inturn.key_cursor, t inturn.topic, next inturn.command_log)
RETURNS TABLE (cause text, since timestamptz, says text, to_do text, details jsonb)
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    failed constant text := format('Its next command, %s, failed at attempt %s of %s: %s', inturn.name_command(next),
                                   c.attempts, t.max_attempts, inturn.shorten(c.last_error, 200));
    serving jsonb;
    strange jsonb;
BEGIN
    IF c.ready_at IS NULL THEN
        RETURN QUERY SELECT 'broken', next.created_at, format('It is idle although command %s is pending, which should never be: '
            'please report it', inturn.name_command(next)), 'inturn verify --topic {topic} --key {key}', jsonb_build_object('seq', next.seq);
        RETURN;
    ELSIF c.attempts > 0 AND c.ready_at > clock_timestamp() THEN
        RETURN QUERY SELECT 'retrying', c.failed_at,
            failed || to_char(c.ready_at AT TIME ZONE 'UTC', '. "It is tried again at" YYYY-MM-DD HH24:MI:SS "UTC"'),
            concat_ws(E'\n', 'inturn show --topic {topic} --error {key}', 'inturn retry --topic {topic} {key}  # to try it now'),
            jsonb_build_object('until', c.ready_at, 'error', c.last_error, 'attempts', c.attempts, 'max_attempts', t.max_attempts,
                               'seq', next.seq, 'name', next.name);
        RETURN;
    END IF;
    SELECT jsonb_agg(to_jsonb(a) ORDER BY a.applier) FILTER (WHERE a.alive AND a.revision = v.version_num)
    INTO serving FROM inturn.list_appliers() a CROSS JOIN inturn.schema_version v WHERE t.name = ANY (a.topics);
    IF serving IS NULL THEN
        RETURN QUERY SELECT u.cause, c.ready_at, u.says || CASE WHEN c.attempts > 0 THEN '. ' || failed ELSE '' END, u.to_do, u.details
        FROM inturn.explain_unserved(t) u;
    ELSE
        RETURN QUERY SELECT q.cause, c.ready_at, q.says || CASE WHEN c.attempts > 0 THEN '. ' || failed ELSE '' END, q.to_do, q.details
        FROM inturn.explain_queued(c, serving) q;
    END IF;
END
$$;
COMMENT ON FUNCTION inturn.explain_ready IS 'Internal to why: explains a key that has a next command and is in nobody''s hands.';

-- functions/explain_key.sql
-- Explains why a key does not move: the first of the causes that holds. Internal to why.
-- Locks what find_locks and is_first_append_open do, for a moment.
CREATE OR REPLACE FUNCTION inturn.explain_key(topic text, key text)
RETURNS TABLE (cause text, since timestamptz, says text, to_do text, details jsonb)
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    locked record;
    here record;
    c inturn.key_cursor;
    t inturn.topic;
    next inturn.command_log;
BEGIN
    SELECT * INTO locked FROM inturn.find_locks(topic, key);
    SELECT * INTO t FROM inturn.topic WHERE name = explain_key.topic;
    -- One statement, one snapshot: an idle key with something pending would be an alarm.
    SELECT k AS cursor, l AS next INTO here FROM inturn.key_cursor k
    LEFT JOIN inturn.command_log l ON l.topic = k.topic AND l.key = k.key AND l.seq = k.applied_seq + 1
    WHERE k.topic = explain_key.topic AND k.key = explain_key.key;
    IF NOT FOUND THEN
        RETURN QUERY SELECT * FROM inturn.explain_unknown(topic, key);
        RETURN;
    END IF;
    c := here.cursor;
    next := here.next;
    IF locked.on_cursor THEN
        RETURN QUERY SELECT * FROM inturn.explain_hands(topic, key, next);
        IF FOUND THEN RETURN; END IF;
    END IF;
    RETURN QUERY SELECT * FROM inturn.explain_standstill(c, t, next);
    IF FOUND THEN RETURN; END IF;
    IF next.seq IS NULL THEN
        RETURN QUERY SELECT * FROM inturn.explain_empty(c, locked.on_sequence);
    ELSE
        RETURN QUERY SELECT * FROM inturn.explain_ready(c, t, next);
    END IF;
END
$$;
COMMENT ON FUNCTION inturn.explain_key IS 'Internal to why: the first cause that holds.';

-- functions/key_facts.sql
-- Returns where a key stands, as operator_action keeps it before and after. Internal. Takes no locks.
CREATE OR REPLACE FUNCTION inturn.key_facts(c inturn.key_cursor) RETURNS jsonb
LANGUAGE sql STABLE
AS $$
SELECT jsonb_strip_nulls(jsonb_build_object(
    'state', inturn.key_state(c), 'applied_seq', c.applied_seq, 'epoch', c.epoch, 'attempts', c.attempts,
    'ready_at', c.ready_at, 'held_at', c.held_at, 'paused_at', c.paused_at, 'paused_until', c.paused_until,
    'last_error', c.last_error))
$$;
COMMENT ON FUNCTION inturn.key_facts IS 'Internal to the operators'' functions: where a key stands.';

-- functions/lock_cursor.sql
DROP FUNCTION inturn.lock_cursor;
-- Locks a key for an operator, and returns its row in key_cursor. Internal to the operators' functions.
--
-- Waits for the applier that is at work on the key, for at most lock_timeout (set it: the default is for ever).
-- Raises IT001, IT040 no such key, IT042 when the wait was too long, with who holds it; IT031 outside READ COMMITTED.
CREATE FUNCTION inturn.lock_cursor(topic text, key text) RETURNS inturn.key_cursor
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    cursor inturn.key_cursor;
BEGIN
    PERFORM inturn.require_read_committed();
    BEGIN
        SELECT * INTO cursor FROM inturn.key_cursor c
        WHERE c.topic = lock_cursor.topic AND c.key = lock_cursor.key FOR UPDATE;
    EXCEPTION WHEN lock_not_available THEN
        RAISE EXCEPTION USING ERRCODE = 'IT042',
            MESSAGE = format('key %L of topic %L is in other hands: %s', key, topic, coalesce((
                SELECT inturn.describe_backend(inturn.row_holder(c.xmax, 'inturn.key_cursor')) FROM inturn.key_cursor c
                WHERE c.topic = lock_cursor.topic AND c.key = lock_cursor.key), 'nobody any more')),
            HINT = format('Nothing was changed. Waited for %s; try again, or end that session: SELECT pg_terminate_backend(PID).',
                          current_setting('lock_timeout'));
    END;
    IF cursor.key IS NULL THEN
        IF NOT EXISTS (SELECT FROM inturn.topic t WHERE t.name = lock_cursor.topic) THEN
            PERFORM inturn.refuse_topic(topic);
        END IF;
        RAISE EXCEPTION USING ERRCODE = 'IT040',
            MESSAGE = format('topic %L has no key %s', topic, coalesce(quote_literal(left(key, 600)), 'NULL')),
            HINT = 'A key is known from its first committed command on. Keys are compared byte by byte.';
    END IF;
    RETURN cursor;
END
$$;
COMMENT ON FUNCTION inturn.lock_cursor IS 'Internal to the operators'' functions: locks a key and returns its cursor.';

-- functions/settle_key.sql
-- Lets a key whose cursor an operator has moved go idle, be ready, or stay paused; returns its row. Internal.
--
-- The caller holds the key's row in key_cursor. Locks its row in key_sequence, skipping it if a caller holds it: then
-- the key is ready, and an applier's turn will find out.
CREATE OR REPLACE FUNCTION inturn.settle_key(topic text, key text) RETURNS inturn.key_cursor
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    cursor inturn.key_cursor;
    drained boolean;
BEGIN
    PERFORM FROM inturn.key_sequence s WHERE s.topic = settle_key.topic AND s.key = settle_key.key FOR UPDATE SKIP LOCKED;
    drained := FOUND;
    -- A statement of its own, whose snapshot is newer than the lock: see finish.
    SELECT drained AND NOT EXISTS (
        SELECT FROM inturn.command_log l
        WHERE l.topic = settle_key.topic AND l.key = settle_key.key AND l.seq = c.applied_seq + 1) INTO drained
    FROM inturn.key_cursor c WHERE c.topic = settle_key.topic AND c.key = settle_key.key;
    UPDATE inturn.key_cursor c SET
        ready_at = CASE WHEN drained THEN NULL
                        WHEN c.paused_at IS NULL OR c.paused_until IS NOT NULL THEN greatest(clock_timestamp(), c.paused_until) END
    WHERE c.topic = settle_key.topic AND c.key = settle_key.key RETURNING * INTO cursor;
    IF drained THEN
        UPDATE inturn.key_sequence s SET drained_seq = cursor.applied_seq
        WHERE s.topic = settle_key.topic AND s.key = settle_key.key;
    ELSE
        PERFORM inturn.notify_appliers(topic);
    END IF;
    RETURN cursor;
END
$$;
COMMENT ON FUNCTION inturn.settle_key IS 'Internal to the operators'' functions: lets a key go idle, be ready, or stay paused.';

-- functions/move_past.sql
-- Moves a key's cursor past the commands that an operator passes over, and settles the key; returns its row. Internal.
--
-- The caller holds the key's row in key_cursor. Locks what settle_key locks.
CREATE OR REPLACE FUNCTION inturn.move_past(topic text, key text, seq bigint) RETURNS inturn.key_cursor
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
BEGIN
    UPDATE inturn.key_cursor c SET
        applied_seq = move_past.seq, epoch = c.epoch + 1, attempts = 0, empty_turns = 0,
        last_error = NULL, failed_at = NULL, held_at = NULL
    WHERE c.topic = move_past.topic AND c.key = move_past.key;
    RETURN inturn.settle_key(topic, key);
END
$$;
COMMENT ON FUNCTION inturn.move_past IS 'Internal to skip and cancel_rest: moves a key''s cursor past what is passed over.';

-- functions/retry_key.sql
-- Makes a key ready now, with all its attempts before it, and records who wanted it. Internal to retry and retry_all.
--
-- was: the key's row in key_cursor, which the caller has locked.
CREATE OR REPLACE FUNCTION inturn.retry_key(was inturn.key_cursor, reason text) RETURNS inturn.operator_action
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    moved inturn.key_cursor;
BEGIN
    UPDATE inturn.key_cursor c SET held_at = NULL, ready_at = clock_timestamp(), attempts = 0
    WHERE c.topic = was.topic AND c.key = was.key RETURNING * INTO moved;
    RETURN inturn.record_action(was.topic, was.key, was.applied_seq + 1, 'retry', reason,
                                inturn.key_facts(was), inturn.key_facts(moved));
END
$$;
COMMENT ON FUNCTION inturn.retry_key IS 'Internal to retry and retry_all: makes a key ready now and records it.';

-- functions/retry.sql
-- Makes a held or retrying key ready now, with all its attempts before it again; returns the recorded action.
--
-- Locks: the key's row in key_cursor (see lock_cursor).
-- Raises IT041 when the key is neither held nor retrying, and what lock_cursor raises.
CREATE OR REPLACE FUNCTION inturn.retry(topic text, key text, reason text DEFAULT NULL) RETURNS inturn.operator_action
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    was constant inturn.key_cursor := inturn.lock_cursor(topic, key);
BEGIN
    IF inturn.key_state(was) NOT IN ('held', 'retrying') THEN
        PERFORM inturn.refuse_action(topic, key, format('is %s: there is no failed command to retry', inturn.key_state(was)),
            CASE inturn.key_state(was) WHEN 'paused' THEN 'Resume it instead.' ELSE 'What is pending is applied in its turn.' END);
    END IF;
    PERFORM inturn.notify_appliers(topic);
    RETURN inturn.retry_key(was, reason);
END
$$;
COMMENT ON FUNCTION inturn.retry IS 'Makes a held or retrying key ready now, with all its attempts before it again.';

-- functions/replay.sql
-- Appends a skipped or applied command again, at the end of its key; returns the recorded action, whose after has
-- the new seq. Its old place stays as it is.
--
-- Once for every seq: to do it again, replay the new one.
-- Locks: what append locks.
-- Raises IT041 when seq is pending, not there, or was replayed before; IT043 without a reason; and what append raises.
CREATE OR REPLACE FUNCTION inturn.replay(topic text, key text, seq bigint, reason text) RETURNS inturn.operator_action
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    again constant text := 'inturn.replay:' || seq;
    applied bigint;
    command inturn.command_log;
    replayed bigint;
BEGIN
    PERFORM inturn.require_reason('replay', reason);
    -- The lock under which the number is taken; it orders two operators too.
    PERFORM FROM inturn.key_sequence s WHERE s.topic = replay.topic AND s.key = replay.key FOR UPDATE;
    SELECT c.applied_seq INTO applied FROM inturn.key_cursor c WHERE c.topic = replay.topic AND c.key = replay.key;
    SELECT * INTO command FROM inturn.command_log l
    WHERE l.topic = replay.topic AND l.key = replay.key AND l.seq = replay.seq;
    SELECT l.seq INTO replayed FROM inturn.command_log l
    WHERE l.topic = replay.topic AND l.key = replay.key AND l.idempotency_key = again;
    IF command.seq IS NULL THEN
        PERFORM inturn.refuse_action(topic, key, format('has no command %s', seq), 'See its commands with inturn show.');
    ELSIF seq > applied THEN
        PERFORM inturn.refuse_action(topic, key, format('has command %s still pending: it will be applied in its turn', seq),
            'Only what was applied or skipped can be replayed.');
    ELSIF replayed IS NOT NULL THEN
        PERFORM inturn.refuse_action(topic, key, format('had command %s replayed before, as %s', seq, replayed),
            format('To apply it once more, replay %s.', replayed));
    END IF;
    replayed := inturn.append(topic, key, command.name, command.payload, again);
    RETURN inturn.record_action(topic, key, seq, 'replay', reason, jsonb_build_object('seq', seq, 'name', command.name),
                                jsonb_build_object('seq', replayed, 'name', command.name));
END
$$;
COMMENT ON FUNCTION inturn.replay IS 'Appends a skipped or applied command again, at the end of its key.';

-- functions/amend.sql
-- Changes the name or the payload of a pending command; returns the recorded action, whose before has the original.
--
-- name, payload: NULL leaves it as it is. was: the payload that the operator saw; NULL: whatever it is.
-- Locks: the key's row in key_cursor (see lock_cursor), so that no applier has read the command; its row in the log.
-- Raises IT041 when seq is not pending, is not what the operator saw, or nothing would change; IT043 without a reason;
-- what refuse_command and lock_cursor raise.
CREATE OR REPLACE FUNCTION inturn.amend(
    topic text, key text, seq bigint, reason text,
    name text DEFAULT NULL, payload jsonb DEFAULT NULL, was jsonb DEFAULT NULL
) RETURNS inturn.operator_action
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    cursor inturn.key_cursor;
    command inturn.command_log;
BEGIN
    PERFORM inturn.require_reason('amend', reason);
    cursor := inturn.lock_cursor(topic, key);
    SELECT * INTO command FROM inturn.command_log l
    WHERE l.topic = amend.topic AND l.key = amend.key AND l.seq = amend.seq FOR UPDATE;
    IF command.seq IS NULL THEN
        PERFORM inturn.refuse_action(topic, key, format('has no command %s', seq), 'See its commands with inturn show.');
    ELSIF seq <= cursor.applied_seq THEN
        PERFORM inturn.refuse_action(topic, key, format('has command %s behind it: it is at %s', seq, cursor.applied_seq),
            'What was applied or skipped cannot be amended; append a new command instead.');
    ELSIF was IS DISTINCT FROM command.payload AND was IS NOT NULL THEN
        PERFORM inturn.refuse_action(topic, key, format('has another payload in command %s than it had when you looked', seq),
            'Look again with inturn show, then amend what is there now.');
    ELSIF (coalesce(amend.name, command.name), coalesce(amend.payload, command.payload)) = (command.name, command.payload) THEN
        PERFORM inturn.refuse_action(topic, key, format('has command %s like that already', seq), 'Nothing was changed.');
    END IF;
    PERFORM inturn.refuse_command(topic, key, coalesce(amend.name, command.name), coalesce(amend.payload, command.payload), NULL);
    UPDATE inturn.command_log l SET name = coalesce(amend.name, l.name), payload = coalesce(amend.payload, l.payload)
    WHERE l.topic = amend.topic AND l.key = amend.key AND l.seq = amend.seq;
    RETURN inturn.record_action(topic, key, seq, 'amend', reason,
        jsonb_build_object('name', command.name, 'payload', command.payload),
        jsonb_build_object('name', coalesce(amend.name, command.name), 'payload', coalesce(amend.payload, command.payload)));
END
$$;
COMMENT ON FUNCTION inturn.amend IS 'Changes the name or the payload of a pending command; the original stays in operator_action.';

-- functions/pause.sql
-- Keeps a key standing still, until a time or for good; returns the recorded action.
--
-- Waits for the turn in hand (see lock_cursor). Appends go on; nothing is lost. Paused already, it takes the new until.
-- Locks: the key's row in key_cursor.
-- Raises IT041 when the key is held, is paused until the same time, or until is past; and what lock_cursor raises.
CREATE OR REPLACE FUNCTION inturn.pause(topic text, key text, reason text DEFAULT NULL, until timestamptz DEFAULT NULL)
RETURNS inturn.operator_action
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    was constant inturn.key_cursor := inturn.lock_cursor(topic, key);
    paused constant boolean := inturn.key_state(was) = 'paused';
    cursor inturn.key_cursor;
BEGIN
    IF was.held_at IS NOT NULL THEN
        PERFORM inturn.refuse_action(topic, key, 'is held: it stands still already', 'Leave it held for as long as it takes.');
    ELSIF until <= clock_timestamp() THEN
        PERFORM inturn.refuse_action(topic, key, format('cannot be paused until %s, which is past', until), 'Give a later time.');
    ELSIF paused AND was.paused_until IS NOT DISTINCT FROM until THEN
        PERFORM inturn.refuse_action(topic, key, 'is paused already', 'Resume it, or give another time.');
    END IF;
    UPDATE inturn.key_cursor c SET
        paused_at = CASE WHEN paused THEN c.paused_at ELSE clock_timestamp() END, paused_until = until,
        -- A drained key with nothing pending stays idle: the append that wakes it reads paused_until.
        ready_at = CASE WHEN EXISTS (
                SELECT FROM inturn.command_log l WHERE l.topic = c.topic AND l.key = c.key AND l.seq = c.applied_seq + 1)
            OR EXISTS (
                SELECT FROM inturn.key_sequence s WHERE s.topic = c.topic AND s.key = c.key AND s.drained_seq < c.applied_seq)
            THEN until END
    WHERE c.topic = pause.topic AND c.key = pause.key RETURNING * INTO cursor;
    RETURN inturn.record_action(topic, key, NULL, 'pause', reason, inturn.key_facts(was), inturn.key_facts(cursor));
END
$$;
COMMENT ON FUNCTION inturn.pause IS 'Keeps a key standing still, until a time or for good.';

-- functions/resume.sql
-- Lets a paused key go on where it stood; returns the recorded action.
--
-- Locks, in this order: the key's row in key_cursor (see lock_cursor); its row in key_sequence, if no caller holds it.
-- Raises IT041 when the key is not paused, and what lock_cursor raises.
CREATE OR REPLACE FUNCTION inturn.resume(topic text, key text, reason text DEFAULT NULL) RETURNS inturn.operator_action
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    was constant inturn.key_cursor := inturn.lock_cursor(topic, key);
BEGIN
    IF inturn.key_state(was) <> 'paused' THEN
        PERFORM inturn.refuse_action(topic, key, format('is %s, not paused', inturn.key_state(was)),
            CASE WHEN was.held_at IS NOT NULL THEN 'Retry it, or skip the command that failed.' ELSE 'There is nothing to resume.' END);
    END IF;
    UPDATE inturn.key_cursor c SET paused_at = NULL, paused_until = NULL WHERE c.topic = resume.topic AND c.key = resume.key;
    RETURN inturn.record_action(topic, key, NULL, 'resume', reason, inturn.key_facts(was),
                                inturn.key_facts(inturn.settle_key(topic, key)));
END
$$;
COMMENT ON FUNCTION inturn.resume IS 'Lets a paused key go on where it stood.';

-- functions/set_topic.sql
DROP FUNCTION inturn.set_topic;
-- Changes settings of a topic; returns the recorded action. Appliers that run follow within seconds.
--
-- NULL leaves a setting as it is.
-- Locks: the topic's row.
-- Raises IT041 when nothing would change, what check_topic raises, and what lock_topic raises.
CREATE FUNCTION inturn.set_topic(
    topic text, reason text DEFAULT NULL, target text DEFAULT NULL, max_attempts integer DEFAULT NULL,
    backoff_base interval DEFAULT NULL, backoff_cap interval DEFAULT NULL,
    max_payload_bytes integer DEFAULT NULL, batch_commands integer DEFAULT NULL, on_exhausted text DEFAULT NULL
) RETURNS inturn.operator_action
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    was constant inturn.topic := inturn.lock_topic(topic);
    settings inturn.topic := was;
BEGIN
    settings.target := coalesce(target, was.target);
    settings.max_attempts := coalesce(max_attempts, was.max_attempts);
    settings.backoff_base := coalesce(backoff_base, was.backoff_base);
    settings.backoff_cap := coalesce(backoff_cap, was.backoff_cap);
    settings.max_payload_bytes := coalesce(max_payload_bytes, was.max_payload_bytes);
    settings.batch_commands := coalesce(batch_commands, was.batch_commands);
    settings.on_exhausted := coalesce(on_exhausted, was.on_exhausted);
    IF settings = was THEN
        PERFORM inturn.refuse_action(topic, '', 'has these settings already', 'Nothing was changed.');
    END IF;
    PERFORM inturn.check_topic(settings);
    UPDATE inturn.topic t SET (target, max_attempts, backoff_base, backoff_cap, max_payload_bytes, batch_commands, on_exhausted)
        = (settings.target, settings.max_attempts, settings.backoff_base, settings.backoff_cap,
           settings.max_payload_bytes, settings.batch_commands, settings.on_exhausted)
    WHERE t.name = set_topic.topic;
    RETURN inturn.record_action(topic, '', NULL, 'set', reason, to_jsonb(was), to_jsonb(settings));
END
$$;
COMMENT ON FUNCTION inturn.set_topic IS 'Changes settings of a topic.';

-- The older schema has no gaps: what waits for a number cannot be kept by it.
DO $$
BEGIN
    IF EXISTS (SELECT FROM inturn.topic t WHERE t.numbering = 'given' OR t.target ~ '^https?:') THEN
        RAISE EXCEPTION USING ERRCODE = 'IT060',
            MESSAGE = 'there are topics with numbering given, or an http target, which the older revision does not know',
            HINT = 'Drain them, and delete them from inturn.topic with their rows first.';
    END IF;
END
$$;
-- A lease ends here; its work is done again.
UPDATE inturn.key_cursor SET ready_at = greatest(clock_timestamp(), paused_until)
WHERE lease_until IS NOT NULL AND ready_at IS NOT NULL;
ALTER TABLE inturn.key_cursor
    DROP COLUMN waiting_at, DROP COLUMN claimed_by, DROP COLUMN claimed_at, DROP COLUMN lease_until;
ALTER TABLE inturn.topic
    DROP COLUMN numbering, DROP COLUMN first_seq, DROP COLUMN max_ahead, DROP COLUMN gap_timeout, DROP COLUMN lease,
    DROP COLUMN max_in_flight,
    DROP CONSTRAINT topic_target_check,
    ADD CONSTRAINT topic_target_check CHECK (target = 'python' OR target LIKE 'sql:_%');
REVOKE SELECT, UPDATE ON inturn.turn FROM inturn_applier;

COMMENT ON COLUMN inturn.topic.target IS 'python, or sql:SCHEMA.FUNCTION, which takes one inturn.command.';
COMMENT ON COLUMN inturn.key_cursor.ready_at IS 'From when on an applier may claim the key; NULL: idle, held or paused.';
COMMENT ON COLUMN inturn.key_cursor.held_at IS 'Since when the key stands still because its next command failed for good.';
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
    inturn.fail(text, text, bigint, bigint, bigint, text, text, text, interval),
    inturn.backoff(inturn.topic, integer),
    inturn.pass_over(text, text, bigint, bigint, bigint, text, text),
    inturn.require_read_committed(),
    inturn.refuse_topic(text),
    inturn.target_function(text, text),
    inturn.target_query(text, text),
    inturn.read_verdict(text, text),
    inturn.apply_key(text, text, bigint, bigint, integer, integer, text, text),
    inturn.apply_batch(text, timestamptz, integer, text),
    inturn.visit_topic(text, timestamptz, integer, text, bigint, bigint, boolean),
    inturn.apply(text[], double precision, integer, bigint, bigint),
    inturn.announce_applier(text, text[], text, integer, text, boolean),
    inturn.announce_sleep(text[]),
    inturn.next_ready(text[], timestamptz),
    inturn.pending_commands(text[])
TO inturn_applier;
GRANT SELECT ON inturn.topic, inturn.command_log TO inturn_applier;
GRANT SELECT, UPDATE ON inturn.key_cursor, inturn.key_sequence TO inturn_applier;
GRANT SELECT, INSERT, UPDATE ON inturn.listener TO inturn_applier;
GRANT INSERT ON inturn.turn TO inturn_applier;
GRANT SELECT, INSERT ON inturn.skip TO inturn_applier;
GRANT SELECT, INSERT, UPDATE, DELETE ON inturn.applier TO inturn_applier;

-- An operator reads everything, creates topics, and puts right by functions that run as their owner and record who did it.
GRANT SELECT ON ALL TABLES IN SCHEMA inturn TO inturn_operator;
GRANT INSERT ON inturn.topic TO inturn_operator;
GRANT EXECUTE ON FUNCTION
    inturn.create_topic(text, text, integer, interval, interval, integer, integer, text),
    inturn.check_topic(inturn.topic),
    inturn.target_function(text, text),
    inturn.keys_query(text, text),
    inturn.list_keys(text, text, integer, text, interval, bigint, text),
    inturn.topic_status(text, interval),
    inturn.pending_commands(text[]),
    inturn.key_state(inturn.key_cursor),
    inturn.timeline(text, text, integer),
    inturn.verify_topics(),
    inturn.verify_slice(text, text, integer),
    inturn.verify_rows(text, text, text[], bigint[], bigint, bigint),
    inturn.verify(text, text, text),
    inturn.list_appliers(),
    inturn.why(text, text),
    inturn.retry(text, text, text),
    inturn.retry_all(text, text, text, interval, text),
    inturn.skip(text, text, bigint, text),
    inturn.cancel_rest(text, text, text),
    inturn.replay(text, text, bigint, text),
    inturn.amend(text, text, bigint, text, text, jsonb, jsonb),
    inturn.pause(text, text, text, timestamptz),
    inturn.resume(text, text, text),
    inturn.pause_topic(text, text, timestamptz),
    inturn.resume_topic(text, text),
    inturn.set_topic(text, text, text, integer, interval, interval, integer, integer, text)
TO inturn_operator;
