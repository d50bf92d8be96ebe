-- The operators' side: states to find, causes to explain, actions to put right, each recorded.
ALTER TABLE inturn.topic
    ADD COLUMN on_exhausted text NOT NULL DEFAULT 'hold' CHECK (on_exhausted IN ('hold', 'skip', 'cancel-rest')),
    ADD COLUMN paused_at timestamptz,
    ADD COLUMN paused_until timestamptz;
ALTER TABLE inturn.key_cursor
    ADD COLUMN paused_at timestamptz,
    ADD COLUMN paused_until timestamptz;
CREATE INDEX key_cursor_retrying ON inturn.key_cursor (topic, ready_at) WHERE attempts > 0 AND ready_at IS NOT NULL;
CREATE INDEX key_cursor_paused ON inturn.key_cursor (topic, paused_at) WHERE paused_at IS NOT NULL;
ALTER TABLE inturn.turn
    DROP CONSTRAINT turn_outcome_check,
    ADD CONSTRAINT turn_outcome_check CHECK (outcome IN ('applied', 'retrying', 'held', 'skipped', 'cancelled'));
CREATE INDEX turn_finished ON inturn.turn USING brin (finished_at) WITH (autosummarize = on);

COMMENT ON COLUMN inturn.topic.max_attempts IS 'A command that failed this often is tried no more: see on_exhausted.';
COMMENT ON COLUMN inturn.topic.on_exhausted IS 'What then: hold its key, skip the command, or cancel-rest: skip all that is pending on the key.';
COMMENT ON COLUMN inturn.topic.paused_at IS 'Since when an operator keeps all its keys standing still.';
COMMENT ON COLUMN inturn.topic.paused_until IS 'When they go on by themselves; NULL while paused: when an operator says so.';

COMMENT ON COLUMN inturn.key_cursor.applied_seq IS 'Everything up to here has taken effect, or was passed over (see skip).';
COMMENT ON COLUMN inturn.key_cursor.ready_at IS 'From when on an applier may claim the key; NULL: idle, held or paused.';
COMMENT ON COLUMN inturn.key_cursor.epoch IS 'Counts the turns of the key, and the operators'' moves of its cursor; the fencing token.';
COMMENT ON COLUMN inturn.key_cursor.paused_at IS 'Since when an operator keeps the key standing still.';
COMMENT ON COLUMN inturn.key_cursor.paused_until IS 'When it goes on by itself; NULL while paused: when an operator says so.';

COMMENT ON TABLE inturn.turn IS 'What each turn did: commands from_seq to to_seq were applied; then, unless the outcome is applied, to_seq + 1 failed. skipped: it was passed over; cancelled: with all that was pending.';

-- tables/skip.sql
-- The commands that were passed over, an entry a number: they stay in the log and never take effect. Append-only.
CREATE TABLE inturn.skip (
    topic text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    seq bigint NOT NULL,
    epoch bigint NOT NULL,
    skipped_by text NOT NULL
        CHECK (skipped_by IN ('operator', 'handler', 'attempts')),
    reason text,
    skipped_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- A number is passed over once.
    PRIMARY KEY (topic, key, seq)
);
COMMENT ON TABLE inturn.skip IS 'The commands that were passed over, an entry a number.';
COMMENT ON COLUMN inturn.skip.epoch IS 'The turn, or the operator''s move of the cursor, that passed over it.';
COMMENT ON COLUMN inturn.skip.skipped_by IS 'operator; handler: it asked for it; attempts: they ran out (see topic.on_exhausted).';

-- tables/operator_action.sql
-- What operators did: who, when, why, and what it was before. Append-only, and only the operators' functions write it.
CREATE TABLE inturn.operator_action (
    id bigint GENERATED ALWAYS AS IDENTITY,
    topic text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL DEFAULT '',
    seq bigint,
    action text COLLATE "C" NOT NULL,
    reason text,
    acted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    db_user text NOT NULL DEFAULT session_user,
    os_user text,
    acting_as text,
    before jsonb,
    after jsonb,
    PRIMARY KEY (topic, key, id)
);
COMMENT ON TABLE inturn.operator_action IS 'What operators did: who, when, why, and what it was before.';
COMMENT ON COLUMN inturn.operator_action.key IS 'Empty: the action was on the whole topic.';
COMMENT ON COLUMN inturn.operator_action.db_user IS 'Whose login the session had.';
COMMENT ON COLUMN inturn.operator_action.os_user IS 'USER@HOST, as the inturn command says (inturn.os_user); not checked.';
COMMENT ON COLUMN inturn.operator_action.acting_as IS 'Whom the login acted for, as --as says (inturn.acting_as); not checked.';

-- tables/applier.sql
-- Who applies, as each applier says of itself every few seconds. Unlogged: after a crash they say it again.
CREATE UNLOGGED TABLE inturn.applier (
    applier text COLLATE "C" PRIMARY KEY,
    topics text[] NOT NULL,
    host text NOT NULL,
    pid integer,
    backend_pid integer NOT NULL,
    backend_start timestamptz NOT NULL,
    revision text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    pooled boolean NOT NULL DEFAULT false
) WITH (fillfactor = 50);
COMMENT ON TABLE inturn.applier IS 'Who applies what, as each applier said of itself when it was last seen.';
COMMENT ON COLUMN inturn.applier.applier IS 'The applier, as in turn.';
COMMENT ON COLUMN inturn.applier.pid IS 'Its process on host; NULL: it is a session of the database.';
COMMENT ON COLUMN inturn.applier.backend_start IS 'With backend_pid: which session of the database it uses, in pg_stat_activity.';
COMMENT ON COLUMN inturn.applier.revision IS 'The revision of the schema that it serves.';
COMMENT ON COLUMN inturn.applier.pooled IS 'It goes through a pooler: the session may be another one by now.';

-- functions/wake_key.sql
-- Makes an idle key ready, and notifies if an applier of its topic may be asleep. Internal to append.
-- A paused key is ready when its pause ends; one that is paused for good stands still until an operator resumes it.
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
    ON CONFLICT ON CONSTRAINT key_cursor_pkey DO UPDATE SET
        ready_at = CASE WHEN c.paused_at IS NULL OR c.paused_until IS NOT NULL
                        THEN greatest(EXCLUDED.ready_at, c.paused_until) END
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

-- functions/backoff.sql
-- Returns how long a key waits after so many failures of its next command: backoff_base * 2^(failures - 1), up to
-- backoff_cap, of which a random part between half and the whole. Internal to fail. Takes no locks.
CREATE FUNCTION inturn.backoff(settings inturn.topic, failures integer) RETURNS interval
LANGUAGE sql VOLATILE
AS $$
SELECT make_interval(secs => (0.5 + random() / 2) * least(
    extract(epoch FROM settings.backoff_cap)::double precision,
    extract(epoch FROM settings.backoff_base)::double precision * power(2, least(failures - 1, 60))))
$$;
COMMENT ON FUNCTION inturn.backoff IS 'Internal to fail: how long a key waits after so many failures.';

-- functions/pass_over.sql
-- Passes over the commands from_seq to to_seq of a key, an entry in skip each; returns the last. Internal to fail and
-- the operators' functions.
--
-- to_seq: NULL for all that are committed now. They stay in the log. The caller holds the key's row in key_cursor and
-- moves its cursor; from_seq is its applied_seq + 1. Takes no other locks.
CREATE FUNCTION inturn.pass_over(
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
DROP FUNCTION inturn.fail;
-- Ends a turn whose command failed_seq failed: records what came before it as applied, and the error on the key.
--
-- verdict: what the handler asked for: retry (after retry_after, else after the usual wait), hold, or skip; NULL: nothing.
-- Without hold or skip, the key is ready again after a wait (see backoff), until the command has failed max_attempts
-- times; then the topic's on_exhausted decides: hold it, skip the command, or cancel-rest: skip all that is pending.
-- Returns the outcome: retrying, held, skipped or cancelled. The key cannot go idle here, so its callers are not locked.
-- Locks the key's row in key_cursor, which the claim has locked already.
-- Raises IT030 when this transaction does not hold the claim, or another turn was recorded since; IT031 outside READ COMMITTED.
CREATE FUNCTION inturn.fail(
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

-- functions/announce_applier.sql
-- Says that an applier serves these topics, and that it was seen now. An applier says so when it starts and every few seconds.
--
-- host, pid: its process; pid NULL: a session of the database, which says it inside the statement that applies.
-- revision: of the schema that it serves. pooled: its sessions of the database may change from one transaction to the next.
-- Its end needs no word: see list_appliers. Forgets appliers that were not seen for a day.
-- Locks: the applier's row; rows of forgotten ones, skipping locked ones.
CREATE FUNCTION inturn.announce_applier(
    applier text, topics text[], host text, pid integer, revision text, pooled boolean DEFAULT false
) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
BEGIN
    INSERT INTO inturn.applier AS a (applier, topics, host, pid, backend_pid, backend_start, revision, pooled)
    SELECT announce_applier.applier, coalesce(announce_applier.topics, '{}'), announce_applier.host, announce_applier.pid,
           s.pid, coalesce(s.backend_start, clock_timestamp()), announce_applier.revision, announce_applier.pooled
    FROM pg_stat_get_activity(pg_backend_pid()) s
    ON CONFLICT (applier) DO UPDATE SET
        topics = EXCLUDED.topics, host = EXCLUDED.host, pid = EXCLUDED.pid, backend_pid = EXCLUDED.backend_pid,
        backend_start = EXCLUDED.backend_start, revision = EXCLUDED.revision, pooled = EXCLUDED.pooled,
        seen_at = EXCLUDED.seen_at,
        -- The same name a while later, in a container that was started again, is another applier.
        started_at = CASE WHEN a.backend_start = EXCLUDED.backend_start OR a.seen_at > EXCLUDED.seen_at - interval '15 seconds'
                          THEN a.started_at ELSE EXCLUDED.started_at END;
    DELETE FROM inturn.applier a WHERE a.applier IN (
        SELECT old.applier FROM inturn.applier old
        WHERE old.seen_at < clock_timestamp() - interval '1 day' FOR UPDATE SKIP LOCKED);
END
$$;
COMMENT ON FUNCTION inturn.announce_applier IS 'Says that an applier serves these topics, and that it was seen now.';

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

-- functions/read_verdict.sql
-- Returns what a command asks for that failed with this SQLSTATE and DETAIL: what fail takes as verdict and retry_after.
-- Internal to the appliers. Takes no locks.
--
-- IT020: retry, after the interval in DETAIL if there is one; IT021: hold; IT022: skip; any other: nothing, NULL.
-- problem: what is wrong with the DETAIL, which then counts as none.
CREATE FUNCTION inturn.read_verdict(
    state text, detail text, OUT verdict text, OUT retry_after interval, OUT problem text
)
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    verdict := CASE state WHEN 'IT020' THEN 'retry' WHEN 'IT021' THEN 'hold' WHEN 'IT022' THEN 'skip' END;
    IF verdict = 'retry' THEN
        retry_after := nullif(trim(detail), '')::interval;
    END IF;
EXCEPTION WHEN data_exception THEN
    problem := 'That DETAIL is no interval: tried again after the usual wait.';
END
$$;
COMMENT ON FUNCTION inturn.read_verdict IS 'Internal to the appliers: what a command asks for that failed with this SQLSTATE.';

-- functions/apply_key.sql
DROP FUNCTION inturn.apply_key;
-- Applies the next commands of one claimed key one by one, with a SQL target, and records a failure.
-- Internal to apply_batch: for a key that is being tried again, or whose commands failed together.
--
-- When command n fails, all of this turn is rolled back and the commands before n run again: their effects stay.
-- What it asks for is in its SQLSTATE (see read_verdict). Begins no further command once it has lasted a second, except
-- those that run again.
-- done_seq: the last applied one. outcome: the one after it failed, and fail has ended the turn, with this outcome;
-- NULL: none failed. failures: 1 then, 0 when it only asked to be skipped. skipped: how many fail has passed over.
-- Locks and raises what fail does. A cancelled query (statement_timeout) and a terminated session end the
-- transaction; they are not failures of the command.
CREATE FUNCTION inturn.apply_key(
    topic text, key text, epoch bigint, applied_seq bigint, attempt integer, max_commands integer,
    target text, applier text,
    OUT done_seq bigint, OUT outcome text, OUT failures integer, OUT skipped bigint
)
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    stop_seq bigint := applied_seq + max_commands;
    leave_at timestamptz := clock_timestamp() + interval '1 s';
    commands bigint;
    message text; detail text; hint text; context text;
    error text;
    asked record;
BEGIN
    failures := 0; skipped := 0;
    LOOP
        BEGIN
            done_seq := applied_seq;
            WHILE done_seq < stop_seq LOOP
                EXECUTE format('SELECT commands FROM (%s) AS q (keys, seqs, commands)',
                               inturn.target_query(topic, target))
                INTO commands USING topic, ARRAY[key], ARRAY[done_seq], 1, attempt, timestamptz 'infinity';
                EXIT WHEN commands = 0;
                done_seq := done_seq + 1;
                EXIT WHEN clock_timestamp() >= leave_at;
            END LOOP;
            EXIT;
        EXCEPTION WHEN assert_failure OR OTHERS THEN
            GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL,
                hint = PG_EXCEPTION_HINT, context = PG_EXCEPTION_CONTEXT;
            asked := inturn.read_verdict(SQLSTATE, detail);
            context := 'CONTEXT: ' || nullif(split_part(context, E'\nSQL statement "SELECT commands', 1), '');
            error := concat_ws(E'\n', CASE WHEN asked.verdict IS NULL THEN format('%s (SQLSTATE %s)', message, SQLSTATE) ELSE message END,
                               'DETAIL: ' || nullif(detail, ''), 'HINT: ' || nullif(hint, ''), asked.problem,
                               CASE WHEN asked.verdict IS NULL THEN context END);
            -- Only what came before the failed command runs again; it shrinks every time round, so this ends.
            stop_seq := done_seq;
            leave_at := 'infinity';
        END;
    END LOOP;
    IF error IS NOT NULL THEN
        outcome := inturn.fail(topic, key, epoch, applied_seq + 1, done_seq + 1, error, applier, asked.verdict, asked.retry_after);
        failures := CASE WHEN asked.verdict = 'skip' THEN 0 ELSE 1 END;
        IF outcome IN ('skipped', 'cancelled') THEN
            SELECT count(*) INTO skipped FROM inturn.skip s
            WHERE s.topic = apply_key.topic AND s.key = apply_key.key AND s.seq > done_seq AND s.epoch = apply_key.epoch;
        END IF;
    END IF;
END
$$;
COMMENT ON FUNCTION inturn.apply_key IS 'Internal to apply_batch: applies the next commands of one key one by one, and records a failure.';

-- functions/apply_batch.sql
DROP FUNCTION inturn.apply_batch;
-- Claims up to max_keys ready keys of a topic with a SQL target, applies their next commands, and ends the turns.
-- The caller commits at once afterwards: finish has locked the keys against their callers.
--
-- Begins no further command once it has lasted a second, so that who waits for a key (see lock_cursor) waits for the
-- command in hand; keys that it has not begun stay ready as they were.
-- failures: commands that failed; skipped: commands that were passed over, because they asked for it or attempts ran out.
-- since: as in claim; pass the returned hand to the next call. keys = 0: none was ready, there is no hand.
-- redo: a command failed while several keys shared the transaction. Nothing was changed; commit, then call with
-- max_keys => 1 for as many keys, so that a failure is one key's and a deadlock between handlers cannot recur.
-- Locks: rows in key_cursor (claim), what the target locks, rows in key_sequence (finish). Waits only in the target.
-- Raises IT001, IT012 for a topic without a SQL target, and what claim, finish and fail raise. A target that is not
-- there fails the commands, as one that raises does: the other topics go on.
CREATE FUNCTION inturn.apply_batch(
    topic text, since timestamptz, max_keys integer, applier text,
    OUT keys integer, OUT commands bigint, OUT failures integer, OUT redo boolean, OUT hand timestamptz,
    OUT skipped bigint
)
LANGUAGE plpgsql VOLATILE
-- No SET clauses: they would reach into the target.
AS $$
DECLARE
    settings inturn.topic;
    claimed record;
    fresh record;
    leave_at timestamptz; cut boolean;
    done_keys text[]; done_seqs bigint[];
    step_by_step boolean := false;
    turn record;
    failed_keys text[] := '{}';
BEGIN
    keys := 0; commands := 0; failures := 0; redo := false; skipped := 0;
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

    leave_at := clock_timestamp() + interval '1 s';
    SELECT array_agg(c.key) AS keys, array_agg(c.applied_seq) AS applied_seqs
    INTO fresh FROM unnest(claimed.keys, claimed.applied_seqs, claimed.attempts) c (key, applied_seq, attempts)
    WHERE c.attempts = 0;
    BEGIN
        EXECUTE inturn.target_query(topic, settings.target) INTO done_keys, done_seqs, commands
        USING topic, fresh.keys, fresh.applied_seqs, settings.batch_commands, 1, leave_at;
        IF commands IS NULL THEN
            RAISE internal_error USING MESSAGE = 'the clock was set back during a turn';
        END IF;
    EXCEPTION WHEN assert_failure OR OTHERS THEN
        IF cardinality(fresh.keys) > 1 THEN
            redo := true;
            RETURN;
        END IF;
        step_by_step := true;
        commands := 0; done_keys := NULL; done_seqs := NULL;
    END;
    FOR i IN 1 .. keys LOOP
        CONTINUE WHEN claimed.attempts[i] = 0 AND NOT step_by_step;
        CONTINUE WHEN claimed.attempts[i] > 0 AND clock_timestamp() >= leave_at;
        SELECT * INTO turn FROM inturn.apply_key(
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
    PERFORM inturn.finish(topic, array_agg(c.key), array_agg(c.epoch), array_agg(c.applied_seq + 1),
                          array_agg(coalesce(d.seq, c.applied_seq)), applier)
    FROM unnest(claimed.keys, claimed.epochs, claimed.applied_seqs) c (key, epoch, applied_seq)
    LEFT JOIN unnest(done_keys, done_seqs) d (key, seq) ON d.key = c.key
    WHERE c.key <> ALL (failed_keys) AND NOT (cut AND d.seq IS NULL)
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
-- of under 10 ms and halves after a longer one, so that a slow handler holds up its own key and no other. After one of
-- at least 100 ms it steps back for a moment: an operator who waits for the key gets it before it is claimed again.
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

-- functions/apply.sql
-- Applies the commands of topics with SQL targets until none is ready: the whole applier, for psql and pg_cron.
--
-- topics: NULL for every topic with a SQL target. max_seconds: stop after this long even if some are ready.
-- max_keys: the most keys that share a transaction; keep it under 64, since each that is tried again takes a
-- subtransaction, and more of them slow down every other session. Returns how many commands were applied and how many failed.
-- Announces itself at its start and every few seconds (see list_appliers).
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
    announced_at timestamptz := '-infinity';
BEGIN
    commands := 0; failures := 0;
    topics := coalesce(topics, ARRAY(SELECT t.name FROM inturn.topic t WHERE t.target LIKE 'sql:%' ORDER BY t.name));
    -- Whatever the session's default; every batch chains its transaction to this one.
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    WHILE found_any AND clock_timestamp() < stop_at LOOP
        found_any := false;
        FOREACH served IN ARRAY topics LOOP
            IF announced_at < clock_timestamp() - interval '5 seconds' THEN
                PERFORM inturn.announce_applier(applier, topics, 'database session', NULL,
                                                (SELECT v.version_num FROM inturn.schema_version v));
                COMMIT AND CHAIN;
                announced_at := clock_timestamp();
            END IF;
            CALL inturn.visit_topic(served, stop_at, max_keys, applier, commands, failures, found_any);
        END LOOP;
    END LOOP;
END
$$;
COMMENT ON PROCEDURE inturn.apply IS 'Applies the commands of topics with SQL targets until none is ready.';

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

-- functions/row_holder.sql
-- Returns the backend whose open transaction has locked a row, NULL when none has. Internal. Takes no locks.
--
-- locker: the row's xmax. A lock taken under a savepoint that was released is not found by it, nor one that several share.
CREATE FUNCTION inturn.row_holder(locker xid, relation regclass) RETURNS integer
LANGUAGE sql VOLATILE
AS $$
SELECT x.pid FROM pg_locks x JOIN pg_locks r ON r.pid = x.pid
WHERE x.locktype = 'transactionid' AND x.transactionid = locker AND x.granted
  AND r.locktype = 'relation' AND r.relation = row_holder.relation AND r.granted
  AND r.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
LIMIT 1
$$;
COMMENT ON FUNCTION inturn.row_holder IS 'Internal: the backend whose open transaction has locked a row.';

-- functions/describe_backend.sql
-- Says in a few words whose session a backend is, since when its transaction is open, and what it does. Internal.
-- Takes no locks.
CREATE FUNCTION inturn.describe_backend(backend integer) RETURNS text
LANGUAGE sql VOLATILE
AS $$
SELECT concat_ws(', ',
    coalesce('applier ' || p.applier, nullif(a.application_name, ''), 'a session') || ' (backend ' || a.pid
        || coalesce(' of ' || a.usename, '') || coalesce(' from ' || host(a.client_addr), '') || ')',
    'in a transaction since ' || to_char(a.xact_start AT TIME ZONE 'UTC', 'HH24:MI:SS "UTC"'),
    CASE a.state WHEN 'idle in transaction' THEN 'doing nothing in it' WHEN 'active' THEN 'at work' END)
FROM pg_stat_activity a
LEFT JOIN inturn.applier p ON p.backend_pid = a.pid AND p.backend_start = a.backend_start
WHERE a.pid = backend
$$;
COMMENT ON FUNCTION inturn.describe_backend IS 'Internal: says whose session a backend is and what it does.';

-- functions/session_waits_for.sql
-- Says what a session that is in a transaction waits for, NULL when it computes. Internal. Takes no locks.
CREATE FUNCTION inturn.session_waits_for(backend integer) RETURNS text
LANGUAGE sql VOLATILE
AS $$
SELECT CASE
    WHEN a.state LIKE 'idle in transaction%' THEN 'its own code, outside the database'
    WHEN a.wait_event_type = 'Lock' THEN 'a lock held by ' || coalesce((
        SELECT string_agg(CASE b.pid WHEN 0 THEN 'a prepared transaction' ELSE inturn.describe_backend(b.pid) END, '; ')
        FROM unnest(pg_blocking_pids(a.pid)) b (pid)), 'somebody')
    WHEN a.state = 'active' THEN a.wait_event_type || ' ' || a.wait_event END
FROM pg_stat_activity a WHERE a.pid = backend
$$;
COMMENT ON FUNCTION inturn.session_waits_for IS 'Internal: says what a session waits for.';

-- functions/is_alive.sql
-- Returns whether an applier is alive, from its entry and its session in pg_stat_activity. Internal. Takes no locks.
--
-- backend, state, query_start: of its session; backend NULL: it is not there. The other two are NULL to those who may not see them.
-- In a session of the database the statement that applies is the one it was announced in; what runs later is something else.
CREATE FUNCTION inturn.is_alive(p inturn.applier, backend integer, state text, query_start timestamptz) RETURNS boolean
LANGUAGE sql VOLATILE
AS $$
SELECT CASE
    WHEN p.pooled THEN p.seen_at > clock_timestamp() - interval '15 seconds'
    WHEN backend IS NULL THEN false
    WHEN p.pid IS NULL THEN coalesce(state = 'active' AND query_start <= p.seen_at, p.seen_at > clock_timestamp() - interval '15 seconds')
    ELSE state IS DISTINCT FROM 'idle' OR p.seen_at > clock_timestamp() - interval '15 seconds' END
$$;
COMMENT ON FUNCTION inturn.is_alive IS 'Internal: whether an applier is alive.';

-- functions/session_kind.sql
-- Returns whose a session is: an applier's; an operator's, that has acted in its open transaction; a caller's, that has
-- appended in it; or another session's. NULL when it is gone. Internal. Takes no locks.
CREATE FUNCTION inturn.session_kind(backend integer) RETURNS text
LANGUAGE sql VOLATILE
AS $$
SELECT CASE
    WHEN a.application_name = 'inturn apply' OR EXISTS (
        SELECT FROM inturn.applier p
        WHERE p.backend_pid = a.pid AND coalesce(a.backend_start, p.backend_start) = p.backend_start
          AND inturn.is_alive(p, a.pid, a.state, a.query_start)) THEN 'applier'
    WHEN 'inturn.operator_action'::regclass = ANY (w.written) THEN 'operator'
    WHEN 'inturn.command_log'::regclass = ANY (w.written) THEN 'caller'
    ELSE 'session' END
FROM pg_stat_activity a CROSS JOIN LATERAL (
    SELECT array_agg(l.relation::regclass) AS written FROM pg_locks l
    WHERE l.pid = a.pid AND l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND l.granted) w
WHERE a.pid = backend
$$;
COMMENT ON FUNCTION inturn.session_kind IS 'Internal: whose a session is: an applier''s, an operator''s, a caller''s, or another.';

-- functions/row_holders.sql
-- Returns the backends of which one has locked a row, as far as can be told. Internal. Takes no locks.
--
-- locker: the row's xmax. One backend, where that names it (see row_holder); else every other one whose open transaction
-- has changed something and has a lock of a row's kind on the table. Appliers are not among those: they lock at the
-- top level. Empty: none is to be seen, as when a prepared transaction has the lock.
CREATE FUNCTION inturn.row_holders(locker xid, relation regclass) RETURNS integer[]
LANGUAGE sql VOLATILE
AS $$
SELECT coalesce(
    (SELECT ARRAY[h.pid] FROM inturn.row_holder(locker, relation) h (pid) WHERE h.pid IS NOT NULL),
    (SELECT array_agg(DISTINCT x.pid) FROM pg_locks x JOIN pg_locks r ON r.pid = x.pid
     WHERE x.locktype = 'transactionid' AND x.granted AND x.pid <> pg_backend_pid()
       AND r.relation = row_holders.relation AND r.mode IN ('RowShareLock', 'RowExclusiveLock') AND r.granted
       AND r.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
       AND inturn.session_kind(x.pid) <> 'applier'),
    '{}')
$$;
COMMENT ON FUNCTION inturn.row_holders IS 'Internal: the backends of which one has locked a row.';

-- functions/shorten.sql
-- Returns the first line of a text that says something, its spaces collapsed, cut to so many characters. Internal.
CREATE FUNCTION inturn.shorten(text_ text, most integer) RETURNS text
LANGUAGE sql IMMUTABLE
AS $$
SELECT CASE WHEN length(l.line) > most THEN left(l.line, most - 3) || '...' ELSE l.line END
FROM (SELECT regexp_replace(split_part(ltrim(left(text_, 4000), E' \t\r\n'), E'\n', 1), '\s+', ' ', 'g')) l (line)
$$;
COMMENT ON FUNCTION inturn.shorten IS 'Internal: the first line of a text, cut.';

-- functions/session_facts.sql
-- Returns sessions as JSON, the one first whose transaction began first. Internal. Takes no locks.
CREATE FUNCTION inturn.session_facts(backends integer[]) RETURNS jsonb
LANGUAGE sql VOLATILE
AS $$
SELECT coalesce(jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
    'backend', a.pid, 'kind', inturn.session_kind(a.pid), 'applier', p.applier, 'host', coalesce(p.host, host(a.client_addr)),
    'pid', p.pid, 'application', nullif(a.application_name, ''), 'user', a.usename, 'since', a.xact_start, 'state', a.state,
    'query', left(a.query, 1000), 'waits_for', inturn.session_waits_for(a.pid),
    'blocked_by', nullif(pg_blocking_pids(a.pid), '{}'), 'says', inturn.describe_backend(a.pid)))
    ORDER BY a.xact_start, a.pid), '[]')
FROM pg_stat_activity a
LEFT JOIN inturn.applier p ON p.backend_pid = a.pid AND coalesce(a.backend_start, p.backend_start) = p.backend_start
WHERE a.pid = ANY (backends)
$$;
COMMENT ON FUNCTION inturn.session_facts IS 'Internal: sessions as JSON, the longest transaction first.';

-- functions/name_sessions.sql
-- Says who the sessions are, of which one is meant. Internal. Takes no locks.
--
-- sessions: from session_facts.
CREATE FUNCTION inturn.name_sessions(sessions jsonb) RETURNS text
LANGUAGE sql IMMUTABLE
AS $$
SELECT CASE jsonb_array_length(sessions)
    WHEN 0 THEN 'a session that is not to be seen; look into pg_prepared_xacts'
    WHEN 1 THEN (sessions->0->>'says') || coalesce('. Its last query: ' || inturn.shorten(sessions->0->>'query', 120), '')
    ELSE format('one of %s sessions: ', jsonb_array_length(sessions))
        || (SELECT string_agg(s.value->>'says', '; ' ORDER BY s.position) FROM jsonb_array_elements(sessions)
            WITH ORDINALITY s (value, position) WHERE s.position <= 3)
        || CASE WHEN jsonb_array_length(sessions) > 3 THEN '; ...' ELSE '' END END
$$;
COMMENT ON FUNCTION inturn.name_sessions IS 'Internal: says who the sessions are, of which one is meant.';

-- functions/list_appliers.sql
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
CREATE FUNCTION inturn.key_state(c inturn.key_cursor) RETURNS text
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

-- functions/pending_commands.sql
-- Counts the committed commands of these topics' ready keys that are not applied: what a drain has before it.
-- Takes no locks. Reads them all: seconds for a million.
CREATE OR REPLACE FUNCTION inturn.pending_commands(topics text[]) RETURNS bigint
LANGUAGE sql STABLE
AS $$
SELECT count(*) FROM inturn.key_cursor c
JOIN inturn.command_log l ON l.topic = c.topic AND l.key = c.key AND l.seq > c.applied_seq
WHERE c.topic = ANY (topics) AND c.ready_at <= clock_timestamp()
  AND NOT EXISTS (SELECT FROM inturn.topic t WHERE t.name = c.topic AND t.paused_at IS NOT NULL
                  AND clock_timestamp() < coalesce(t.paused_until, 'infinity'))
$$;
COMMENT ON FUNCTION inturn.pending_commands IS 'Counts the commands of ready keys that are not applied.';

-- functions/timeline.sql
-- Returns the latest turns of a key and what operators did to it, merged by time, the newest first. Takes no locks.
--
-- kind turn: epoch, from_seq and to_seq as in turn, what is its outcome, done_by the applier, says the error.
-- kind action: from_seq is the number it was about, what is the action, done_by the login, says the reason.
CREATE FUNCTION inturn.timeline(of_topic text, of_key text, max_entries integer DEFAULT 20)
RETURNS TABLE (
    at timestamptz, kind text, epoch bigint, from_seq bigint, to_seq bigint, what text, done_by text, os_user text,
    acting_as text, started_at timestamptz, says text, before jsonb, after jsonb
)
LANGUAGE sql STABLE
SET enable_seqscan = off
AS $$
SELECT * FROM (
    (SELECT t.finished_at AS at, 'turn', t.epoch, t.from_seq, t.to_seq, t.outcome, t.applier,
            NULL::text, NULL::text, t.started_at, t.error, NULL::jsonb, NULL::jsonb
     FROM inturn.turn t WHERE t.topic = of_topic AND t.key = of_key ORDER BY t.epoch DESC LIMIT max_entries)
    UNION ALL
    (SELECT a.acted_at, 'action', NULL, a.seq, NULL, a.action, a.db_user,
            a.os_user, a.acting_as, NULL, a.reason, a.before, a.after
     FROM inturn.operator_action a WHERE a.topic = of_topic AND a.key = of_key ORDER BY a.id DESC LIMIT max_entries)
) e ORDER BY e.at DESC, e.epoch DESC LIMIT max_entries
$$;
COMMENT ON FUNCTION inturn.timeline IS 'The latest turns of a key and what operators did to it, merged by time.';

-- functions/verify_topics.sql
-- Returns the topics to verify: all that are there, and any that rows are left of although it is not. Takes no locks.
--
-- Each step looks for the next name in the primary keys, so the number of rows does not matter.
CREATE FUNCTION inturn.verify_topics() RETURNS SETOF text
LANGUAGE sql STABLE
SET enable_seqscan = off
AS $$
WITH RECURSIVE step (topic) AS (
    SELECT '' COLLATE "C"
    UNION ALL
    SELECT least((SELECT min(t.name) FROM inturn.topic t WHERE t.name > step.topic),
                 (SELECT min(l.topic) FROM inturn.command_log l WHERE l.topic > step.topic),
                 (SELECT min(s.topic) FROM inturn.key_sequence s WHERE s.topic > step.topic),
                 (SELECT min(c.topic) FROM inturn.key_cursor c WHERE c.topic > step.topic),
                 (SELECT min(t.topic) FROM inturn.turn t WHERE t.topic > step.topic),
                 (SELECT min(k.topic) FROM inturn.skip k WHERE k.topic > step.topic))
    FROM step WHERE step.topic IS NOT NULL
)
SELECT step.topic FROM step WHERE step.topic <> ''
$$;
COMMENT ON FUNCTION inturn.verify_topics IS 'The topics to verify: all there are, and any that rows are left of.';

-- functions/verify_slice.sql
-- Returns the next keys of a topic to verify, from from_key on, and how much there is of them: a slice of about
-- max_commands commands, or one key that has more. Takes no locks.
--
-- to_key: the last of them; NULL: to the end. Ask for the next slice with next_key, until that is NULL:
-- no key lies between the two, so what was appended meanwhile, or is in one table only, is not left out.
CREATE FUNCTION inturn.verify_slice(of_topic text, from_key text DEFAULT '', max_commands integer DEFAULT 50000)
RETURNS TABLE (to_key text, next_key text, keys bigint, commands bigint, turns bigint)
LANGUAGE plpgsql STABLE
SET enable_seqscan = off
SET enable_bitmapscan = off
SET max_parallel_workers_per_gather = 0
AS $$
BEGIN
    SELECT l.key INTO to_key FROM inturn.command_log l
    WHERE l.topic = of_topic AND l.key >= from_key COLLATE "C"
    ORDER BY l.key, l.seq OFFSET greatest(max_commands, 1) - 1 LIMIT 1;
    -- The first that can follow, byte by byte.
    next_key := to_key || E'\x01';
    IF to_key IS NULL THEN
        SELECT count(*) INTO keys FROM inturn.key_cursor c WHERE c.topic = of_topic AND c.key >= from_key COLLATE "C";
        SELECT count(*) INTO commands FROM inturn.command_log l WHERE l.topic = of_topic AND l.key >= from_key COLLATE "C";
        SELECT count(*) INTO turns FROM inturn.turn t WHERE t.topic = of_topic AND t.key >= from_key COLLATE "C";
    ELSE
        SELECT count(*) INTO keys FROM inturn.key_cursor c
        WHERE c.topic = of_topic AND c.key >= from_key COLLATE "C" AND c.key <= to_key COLLATE "C";
        SELECT count(*) INTO commands FROM inturn.command_log l
        WHERE l.topic = of_topic AND l.key >= from_key COLLATE "C" AND l.key <= to_key COLLATE "C";
        SELECT count(*) INTO turns FROM inturn.turn t
        WHERE t.topic = of_topic AND t.key >= from_key COLLATE "C" AND t.key <= to_key COLLATE "C";
    END IF;
    RETURN NEXT;
END
$$;
COMMENT ON FUNCTION inturn.verify_slice IS 'The next keys of a topic to verify, and how much there is of them.';

-- functions/verify_rows.sql
-- Returns the rows that show a violation, as a JSON array; payloads are left out, errors are cut. Internal to verify.
-- Of each table the first few: turns by their epochs, others by their seq, from lo to hi. Takes no locks.
CREATE FUNCTION inturn.verify_rows(topic text, key text, tables text[], epochs bigint[], lo bigint, hi bigint) RETURNS jsonb
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
CREATE FUNCTION inturn.verify(of_topic text, from_key text DEFAULT '', to_key text DEFAULT NULL)
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

-- functions/find_locks.sql
-- Returns whether the rows of a key that is there are locked: by an applier, an operator or a caller. Internal.
--
-- Locks what is not locked, skipping the rest, and lets go of it at once: callers wait for that as long as it takes to
-- roll back. Where that cannot be done (read-only, or not at READ COMMITTED), only locks whose holder is known count.
CREATE FUNCTION inturn.find_locks(topic text, key text, OUT on_cursor boolean, OUT on_sequence boolean)
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    IF current_setting('transaction_read_only')::boolean OR current_setting('transaction_isolation') <> 'read committed' THEN
        on_cursor := EXISTS (SELECT FROM inturn.key_cursor c WHERE c.topic = find_locks.topic AND c.key = find_locks.key
                             AND inturn.row_holder(c.xmax, 'inturn.key_cursor') IS NOT NULL);
        on_sequence := EXISTS (SELECT FROM inturn.key_sequence s WHERE s.topic = find_locks.topic AND s.key = find_locks.key
                               AND inturn.row_holder(s.xmax, 'inturn.key_sequence') IS NOT NULL);
        RETURN;
    END IF;
    PERFORM FROM inturn.key_cursor c WHERE c.topic = find_locks.topic AND c.key = find_locks.key FOR UPDATE SKIP LOCKED;
    on_cursor := NOT FOUND;
    PERFORM FROM inturn.key_sequence s WHERE s.topic = find_locks.topic AND s.key = find_locks.key FOR UPDATE SKIP LOCKED;
    on_sequence := NOT FOUND;
    RAISE EXCEPTION USING ERRCODE = 'IT000';
EXCEPTION WHEN SQLSTATE 'IT000' THEN
    NULL; -- the variables keep what was found
END
$$;
COMMENT ON FUNCTION inturn.find_locks IS 'Internal: whether the rows of a key are locked.';

-- functions/is_first_append_open.sql
-- Returns whether a transaction that is still open has appended the first command of a key. Internal.
--
-- Its row cannot be seen: to insert the same one is to wait for it, which is tried for a moment and undone.
-- Where that cannot be done (read-only), and for what is no key, returns false.
CREATE FUNCTION inturn.is_first_append_open(topic text, key text) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET lock_timeout = '20ms'
AS $$
BEGIN
    IF topic IS NOT NULL AND octet_length(key) BETWEEN 1 AND 512 AND NOT current_setting('transaction_read_only')::boolean THEN
        INSERT INTO inturn.key_sequence (topic, key) VALUES (is_first_append_open.topic, is_first_append_open.key)
        ON CONFLICT DO NOTHING;
        RAISE EXCEPTION USING ERRCODE = 'IT000';
    END IF;
    RETURN false;
EXCEPTION
    WHEN SQLSTATE 'IT000' OR serialization_failure THEN RETURN false;
    WHEN lock_not_available THEN RETURN true;
END
$$;
COMMENT ON FUNCTION inturn.is_first_append_open IS 'Internal: whether an open transaction has appended the first command of a key.';

-- functions/slips_of.sql
-- Returns a text as it may have been meant: itself, without spaces or quotes around it, in other case, without one
-- of its characters, with two neighbours in each other's place. Internal to why.
CREATE FUNCTION inturn.slips_of(typed text) RETURNS SETOF text
LANGUAGE sql IMMUTABLE
AS $$
SELECT unnest(ARRAY[typed, t.bare, lower(t.bare), upper(t.bare), initcap(t.bare), trim(t.bare, $x$'"`,;.$x$)])
FROM (SELECT trim(typed, E' \t\r\n')) t (bare)
UNION
SELECT overlay(typed PLACING '' FROM i FOR 1) FROM generate_series(1, length(typed)) i WHERE length(typed) <= 64
UNION
SELECT overlay(typed PLACING substr(typed, i + 1, 1) || substr(typed, i, 1) FROM i FOR 2)
FROM generate_series(1, length(typed) - 1) i WHERE length(typed) <= 64
$$;
COMMENT ON FUNCTION inturn.slips_of IS 'Internal to why: a text as it may have been meant.';

-- functions/near_keys.sql
-- Returns keys that may be meant by one that is not there: the same in another topic; the same but for case, spaces or a
-- slip of the finger; one that begins with it; its neighbours that begin as it does. Internal to why. Takes no locks.
--
-- of_topic: NULL for all topics. A few probes of the primary key for each topic, so this stays quick with millions of keys.
CREATE FUNCTION inturn.near_keys(of_topic text, wanted text, max_keys integer DEFAULT 5)
RETURNS TABLE (topic text, key text)
LANGUAGE sql STABLE
AS $$
SELECT n.topic, n.key FROM (
    SELECT DISTINCT ON (n.topic, n.key) n.* FROM inturn.topic t CROSS JOIN LATERAL (
        -- LIMIT 1: a probe each, whatever the planner thinks.
        SELECT CASE WHEN t.name = coalesce(of_topic, t.name) THEN 0 ELSE 1 END AS rank, c.topic, c.key
        FROM inturn.slips_of(wanted) s (key) CROSS JOIN LATERAL (
            SELECT c.topic, c.key FROM inturn.key_cursor c WHERE c.topic = t.name AND c.key = s.key COLLATE "C" LIMIT 1) c
        UNION ALL
        (SELECT 2, c.topic, c.key FROM inturn.key_cursor c
         WHERE c.topic = t.name AND c.key > wanted COLLATE "C" ORDER BY c.key LIMIT max_keys)
        UNION ALL
        (SELECT 2, c.topic, c.key FROM inturn.key_cursor c
         WHERE c.topic = t.name AND c.key < wanted COLLATE "C" ORDER BY c.key DESC LIMIT 2)
    ) n
    WHERE n.rank < 2 OR wanted <> '' AND n.topic = coalesce(of_topic, n.topic)
                        AND starts_with(n.key, left(wanted, greatest(length(wanted) * 2 / 3, 1)))
    ORDER BY n.topic, n.key, n.rank
) n
WHERE (n.topic, n.key) IS DISTINCT FROM (of_topic, wanted)
ORDER BY n.rank, abs(length(n.key) - length(wanted)), n.key, n.topic LIMIT max_keys
$$;
COMMENT ON FUNCTION inturn.near_keys IS 'Internal to why: keys that may be meant by one that is not there.';

-- functions/name_command.sql
-- Names a command as operators read it: its number, and its name. Internal to why.
CREATE FUNCTION inturn.name_command(command inturn.command_log) RETURNS text
LANGUAGE sql IMMUTABLE
AS $$
SELECT format('%s (%s)', command.seq, inturn.shorten(command.name, 60)) WHERE command.seq IS NOT NULL
$$;
COMMENT ON FUNCTION inturn.name_command IS 'Internal to why: names a command.';

-- functions/explain_append.sql
-- Explains a key whose next command is being appended by a transaction that is still open. Internal to why. Takes no locks.
--
-- sessions: from session_facts, of which one is the caller. waiting: how many other callers wait for it.
CREATE FUNCTION inturn.explain_append(sessions jsonb, waiting bigint, next_seq bigint)
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
CREATE FUNCTION inturn.explain_unknown(topic text, key text)
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

-- functions/explain_hands.sql
-- Explains a key whose cursor is locked by an applier at work on it, or by another session; nothing when it is a
-- caller's. Internal to why. Takes no locks.
--
-- next: the key's next command; its seq is NULL when nothing is pending.
CREATE FUNCTION inturn.explain_hands(topic text, key text, next inturn.command_log)
RETURNS TABLE (cause text, since timestamptz, says text, to_do text, details jsonb)
LANGUAGE sql VOLATILE
AS $$
SELECT CASE WHEN h.applies THEN 'applying' ELSE 'row_locked' END, (h.first->>'since')::timestamptz,
    CASE WHEN h.applies THEN format(coalesce('Command ' || inturn.name_command(next) || ', or one after it, is being applied by %s',
                                             'It is in the hands of %s'), h.who)
                             || coalesce('. It waits for ' || (h.first->>'waits_for'), '')
         ELSE 'No applier gets at it, because its row in key_cursor is locked by ' || h.who END,
    CASE WHEN h.blocker IS NOT NULL THEN format('psql "$INTURN_DSN" -c "SELECT pg_terminate_backend(%s)"  # ends what it waits for', h.blocker)
         WHEN h.first IS NULL THEN 'psql "$INTURN_DSN" -c "SELECT * FROM pg_prepared_xacts"'
         ELSE format('psql "$INTURN_DSN" -c "SELECT pg_terminate_backend(%s)"  # %s', CASE jsonb_array_length(h.sessions) WHEN 1 THEN h.first->>'backend' ELSE 'BACKEND' END,
                     CASE WHEN h.applies THEN 'if it hangs: its turn is taken again' ELSE 'if it will never commit' END) END,
    jsonb_build_object('sessions', h.sessions, 'seq', next.seq)
FROM (
    SELECT s.sessions, s.sessions->0 AS first, s.sessions->0->>'kind' = 'applier' AS applies,
           inturn.name_sessions(s.sessions) AS who, s.sessions->0->'blocked_by'->>0 AS blocker
    FROM inturn.key_cursor c CROSS JOIN LATERAL (
        SELECT inturn.session_facts(inturn.row_holders(c.xmax, 'inturn.key_cursor'))) s (sessions)
    WHERE c.topic = explain_hands.topic AND c.key = explain_hands.key) h
WHERE NOT jsonb_path_exists(h.sessions, '$[*] ? (@.kind == "caller")')
$$;
COMMENT ON FUNCTION inturn.explain_hands IS 'Internal to why: explains a key that is locked by an applier or another session.';

-- functions/explain_standstill.sql
-- Explains a key that stands still because it is held, or because it or its topic is paused; nothing else.
-- Internal to why. Takes no locks.
--
-- next: the key's next command; its seq is NULL when nothing is pending.
CREATE FUNCTION inturn.explain_standstill(c inturn.key_cursor, t inturn.topic, next inturn.command_log)
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
CREATE FUNCTION inturn.explain_unserved(t inturn.topic)
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

-- functions/explain_queued.sql
-- Explains a ready key that others are before. Internal to why. Takes no locks.
--
-- serving: the appliers that serve its topic, as list_appliers lists them. Counts up to 10,000 keys.
CREATE FUNCTION inturn.explain_queued(c inturn.key_cursor, serving jsonb)
RETURNS TABLE (cause text, says text, to_do text, details jsonb)
LANGUAGE sql VOLATILE
AS $$
SELECT 'queued',
    format('It is ready and waits for its turn: %s %s ready for longer. Appliers alive: %s, at work: %s',
           CASE WHEN b.ahead > 10000 THEN 'more than 10000' ELSE b.ahead::text END,
           CASE b.ahead WHEN 1 THEN 'key is' ELSE 'keys are' END, b.appliers, b.busy)
    || coalesce('; ' || (b.first->>'applier') || ' since ' || to_char((b.first->>'since')::timestamptz AT TIME ZONE 'UTC', 'HH24:MI:SS "UTC"')
                || coalesce(', waiting for ' || (b.first->>'waits_for'), ''), ''),
    E'inturn status\ninturn apply --workers N  # more appliers, if these are too few',
    jsonb_build_object('ahead', b.ahead, 'appliers', serving)
FROM (SELECT
    (SELECT count(*) FROM (SELECT FROM inturn.key_cursor k WHERE k.topic = c.topic AND k.ready_at < c.ready_at
                           ORDER BY k.ready_at LIMIT 10001) k) AS ahead,
    jsonb_array_length(serving) AS appliers,
    (SELECT count(*) FROM jsonb_array_elements(serving) s WHERE s->>'doing' = 'applying') AS busy,
    (SELECT s FROM jsonb_array_elements(serving) s WHERE s->>'doing' = 'applying' ORDER BY s->>'since' LIMIT 1) AS first) b
$$;
COMMENT ON FUNCTION inturn.explain_queued IS 'Internal to why: explains a ready key that others are before.';

-- functions/explain_ready.sql
-- Explains a key that has a next command and is not in anybody's hands: it is tried again later, no applier is there for
-- it, or others are before it. Internal to why. Takes no locks.
CREATE FUNCTION inturn.explain_ready(c inturn.key_cursor, t inturn.topic, next inturn.command_log)
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
CREATE FUNCTION inturn.explain_key(topic text, key text)
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

-- functions/why.sql
-- Says why a key does not move: the one cause, since when, and what to do next.
--
-- of_topic: NULL for every topic that has the key, a row each; one row when none has. cause: a stable code, see the docs.
-- says: a sentence. to_do: the next commands to type, a line each; {key} and {topic} in it stand for the key and the
-- topic, which whoever prints it puts in their place, once. details: the facts.
-- Runs as its owner, so that an operator sees other users' sessions; the owner needs pg_monitor, or is a superuser.
-- Locks, for a moment, what nobody else has locked: the key's rows in key_cursor and key_sequence. Raises IT001.
CREATE FUNCTION inturn.why(of_topic text, of_key text)
RETURNS TABLE (topic text, key text, cause text, since timestamptz, says text, to_do text, details jsonb)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
-- Before 18 a table that has to be read whole costs so much under these settings that it would be compiled for.
SET jit = off
AS $$
DECLARE
    topics text[] := ARRAY[of_topic];
BEGIN
    IF of_topic IS NULL THEN
        topics := ARRAY(SELECT t.name FROM inturn.topic t
                        WHERE EXISTS (SELECT FROM inturn.key_cursor c WHERE c.topic = t.name AND c.key = of_key)
                           OR inturn.is_first_append_open(t.name, of_key) ORDER BY t.name);
    ELSIF NOT EXISTS (SELECT FROM inturn.topic t WHERE t.name = of_topic) THEN
        PERFORM inturn.refuse_topic(of_topic);
    END IF;
    IF topics = '{}' THEN
        RETURN QUERY SELECT NULL, of_key, e.* FROM inturn.explain_unknown(NULL, of_key) e;
    END IF;
    RETURN QUERY SELECT t.name, of_key, e.* FROM unnest(topics) WITH ORDINALITY t (name, position)
    CROSS JOIN LATERAL inturn.explain_key(t.name, of_key) e ORDER BY t.position;
END
$$;
COMMENT ON FUNCTION inturn.why IS 'Says why a key does not move: the one cause, since when, and what to do next.';

-- functions/key_facts.sql
-- Returns where a key stands, as operator_action keeps it before and after. Internal. Takes no locks.
CREATE FUNCTION inturn.key_facts(c inturn.key_cursor) RETURNS jsonb
LANGUAGE sql STABLE
AS $$
SELECT jsonb_strip_nulls(jsonb_build_object(
    'state', inturn.key_state(c), 'applied_seq', c.applied_seq, 'epoch', c.epoch, 'attempts', c.attempts,
    'ready_at', c.ready_at, 'held_at', c.held_at, 'paused_at', c.paused_at, 'paused_until', c.paused_until,
    'last_error', c.last_error))
$$;
COMMENT ON FUNCTION inturn.key_facts IS 'Internal to the operators'' functions: where a key stands.';

-- functions/lock_cursor.sql
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

-- functions/lock_topic.sql
-- Locks a topic for an operator, and returns it. Internal to the operators' functions.
--
-- Callers and appliers only read topics: they do not wait for this lock, other operators do. Raises IT001.
CREATE FUNCTION inturn.lock_topic(name text) RETURNS inturn.topic
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    topic inturn.topic;
BEGIN
    SELECT * INTO topic FROM inturn.topic t WHERE t.name = lock_topic.name FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM inturn.refuse_topic(name);
    END IF;
    RETURN topic;
END
$$;
COMMENT ON FUNCTION inturn.lock_topic IS 'Internal to the operators'' functions: locks a topic and returns it.';

-- functions/refuse_action.sql
-- Refuses what an operator asked for, and tells what another one did to the key last. Internal. Takes no locks.
--
-- problem: why it makes no sense. Raises IT041.
CREATE FUNCTION inturn.refuse_action(topic text, key text, problem text, hint text) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    last_action text;
BEGIN
    SELECT format(' (the last action on it: %s%s by %s at %s%s)', a.action, ' of ' || a.seq,
                  coalesce(a.acting_as, a.os_user, a.db_user), to_char(a.acted_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'), ', ' || a.reason)
    INTO last_action FROM inturn.operator_action a
    WHERE a.topic = refuse_action.topic AND a.key = refuse_action.key ORDER BY a.id DESC LIMIT 1;
    RAISE EXCEPTION USING ERRCODE = 'IT041',
        MESSAGE = CASE WHEN key = '' THEN format('topic %L %s', topic, problem)
                       ELSE format('key %L of topic %L %s', key, topic, problem) END || coalesce(last_action, ''),
        HINT = hint;
END
$$;
COMMENT ON FUNCTION inturn.refuse_action IS 'Internal to the operators'' functions: refuses what makes no sense.';

-- functions/require_reason.sql
-- Refuses an operator's change of history without a reason. Internal. Takes no locks. Raises IT043.
CREATE FUNCTION inturn.require_reason(action text, reason text) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    IF coalesce(trim(reason), '') = '' THEN
        RAISE EXCEPTION USING ERRCODE = 'IT043',
            MESSAGE = format('%s changes what takes effect, and was given no reason', action),
            HINT = 'Give the reason: it stays in operator_action for those who ask later.';
    END IF;
END
$$;
COMMENT ON FUNCTION inturn.require_reason IS 'Internal to the operators'' functions: refuses a change without a reason.';

-- functions/record_action.sql
-- Records what an operator did, and returns the entry. Internal to the operators' functions.
--
-- Who: the session's login; and, as far as the session says so, inturn.os_user and inturn.acting_as (set_config).
CREATE FUNCTION inturn.record_action(
    topic text, key text, seq bigint, action text, reason text, before jsonb, after jsonb
) RETURNS inturn.operator_action
LANGUAGE sql VOLATILE
AS $$
INSERT INTO inturn.operator_action (topic, key, seq, action, reason, os_user, acting_as, before, after)
VALUES (topic, key, seq, action, nullif(trim(reason), ''), nullif(current_setting('inturn.os_user', true), ''),
        nullif(current_setting('inturn.acting_as', true), ''), before, after)
RETURNING *
$$;
COMMENT ON FUNCTION inturn.record_action IS 'Internal to the operators'' functions: records what was done, by whom, and why.';

-- functions/notify_appliers.sql
-- Wakes a sleeping applier of a topic, after an operator has made a key ready. Internal. Takes no locks.
CREATE FUNCTION inturn.notify_appliers(topic text) RETURNS void
LANGUAGE sql VOLATILE
AS $$
SELECT pg_notify('inturn.ready', l.topic) FROM inturn.listener l
WHERE l.topic = notify_appliers.topic AND l.asleep_until > clock_timestamp()
$$;
COMMENT ON FUNCTION inturn.notify_appliers IS 'Internal to the operators'' functions: wakes a sleeping applier of a topic.';

-- functions/settle_key.sql
-- Lets a key whose cursor an operator has moved go idle, be ready, or stay paused; returns its row. Internal.
--
-- The caller holds the key's row in key_cursor. Locks its row in key_sequence, skipping it if a caller holds it: then
-- the key is ready, and an applier's turn will find out.
CREATE FUNCTION inturn.settle_key(topic text, key text) RETURNS inturn.key_cursor
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
CREATE FUNCTION inturn.move_past(topic text, key text, seq bigint) RETURNS inturn.key_cursor
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
CREATE FUNCTION inturn.retry_key(was inturn.key_cursor, reason text) RETURNS inturn.operator_action
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
CREATE FUNCTION inturn.retry(topic text, key text, reason text DEFAULT NULL) RETURNS inturn.operator_action
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

-- functions/retry_all.sql
-- Makes every held or retrying key that the filters of list_keys find ready now; returns the recorded actions.
--
-- of_state: held or retrying. A key in other hands is left out: it is being retried, or acted upon, at this moment.
-- Locks the keys' rows in key_cursor, skipping locked ones. Raises what list_keys does.
CREATE FUNCTION inturn.retry_all(
    of_topic text DEFAULT NULL, of_state text DEFAULT 'held', of_like text DEFAULT NULL,
    older_than interval DEFAULT NULL, reason text DEFAULT NULL
) RETURNS SETOF inturn.operator_action
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    was inturn.key_cursor;
BEGIN
    PERFORM inturn.require_read_committed();
    FOR was IN
        SELECT c.* FROM inturn.list_keys(of_topic => retry_all.of_topic, of_state => retry_all.of_state, max_keys => 1000000,
                                         of_like => retry_all.of_like, older_than => retry_all.older_than) l
        CROSS JOIN LATERAL (SELECT c.* FROM inturn.key_cursor c WHERE c.topic = l.topic AND c.key = l.key
                            FOR UPDATE SKIP LOCKED) c
    LOOP
        -- The list was made before the lock was taken.
        CONTINUE WHEN inturn.key_state(was) <> of_state;
        RETURN NEXT inturn.retry_key(was, reason);
    END LOOP;
    PERFORM inturn.notify_appliers(t.name) FROM inturn.topic t WHERE t.name = of_topic OR of_topic IS NULL;
END
$$;
COMMENT ON FUNCTION inturn.retry_all IS 'Makes every held or retrying key that the filters find ready now.';

-- functions/skip.sql
-- Passes over the next command of a key, for good; returns the recorded action.
--
-- seq: which command the operator takes to be the next. It stays in the log, and has an entry in skip; replay appends
-- it again. The turn that another applier may have begun without a lock is fenced off by the next epoch.
-- Locks, in this order: the key's row in key_cursor (see lock_cursor); its row in key_sequence, if no caller holds it.
-- Raises IT041 when seq is not the next command, IT043 without a reason, and what lock_cursor raises.
CREATE FUNCTION inturn.skip(topic text, key text, seq bigint, reason text) RETURNS inturn.operator_action
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    was inturn.key_cursor;
BEGIN
    PERFORM inturn.require_reason('skip', reason);
    was := inturn.lock_cursor(topic, key);
    IF seq IS DISTINCT FROM was.applied_seq + 1 THEN
        PERFORM inturn.refuse_action(topic, key, format('has %s as its next command, not %s', was.applied_seq + 1, seq),
            'Look again with inturn show; only the next command can be skipped.');
    END IF;
    IF inturn.pass_over(topic, key, seq, seq, was.epoch + 1, 'operator', reason) IS NULL THEN
        PERFORM inturn.refuse_action(topic, key, format('has no command %s: nothing is pending', seq), 'There is nothing to skip.');
    END IF;
    RETURN inturn.record_action(topic, key, seq, 'skip', reason, inturn.key_facts(was),
                                inturn.key_facts(inturn.move_past(topic, key, seq)));
END
$$;
COMMENT ON FUNCTION inturn.skip IS 'Passes over the next command of a key, for good.';

-- functions/cancel_rest.sql
-- Passes over every command that is pending on a key now, for good; returns the recorded action.
--
-- What is committed later is applied as ever. after says how many were passed over (cancelled).
-- Locks, in this order: the key's row in key_cursor (see lock_cursor); its row in key_sequence, if no caller holds it.
-- Raises IT041 when nothing is pending, IT043 without a reason, and what lock_cursor raises.
CREATE FUNCTION inturn.cancel_rest(topic text, key text, reason text) RETURNS inturn.operator_action
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    was inturn.key_cursor;
    last_seq bigint;
BEGIN
    PERFORM inturn.require_reason('cancel_rest', reason);
    was := inturn.lock_cursor(topic, key);
    last_seq := inturn.pass_over(topic, key, was.applied_seq + 1, NULL, was.epoch + 1, 'operator', reason);
    IF last_seq IS NULL THEN
        PERFORM inturn.refuse_action(topic, key, format('has nothing pending: all is applied up to %s', was.applied_seq),
                                     'There is nothing to cancel.');
    END IF;
    RETURN inturn.record_action(topic, key, was.applied_seq + 1, 'cancel-rest', reason, inturn.key_facts(was),
        inturn.key_facts(inturn.move_past(topic, key, last_seq)) || jsonb_build_object('cancelled', last_seq - was.applied_seq));
END
$$;
COMMENT ON FUNCTION inturn.cancel_rest IS 'Passes over every command that is pending on a key now, for good.';

-- functions/replay.sql
-- Appends a skipped or applied command again, at the end of its key; returns the recorded action, whose after has
-- the new seq. Its old place stays as it is.
--
-- Once for every seq: to do it again, replay the new one.
-- Locks: what append locks.
-- Raises IT041 when seq is pending, not there, or was replayed before; IT043 without a reason; and what append raises.
CREATE FUNCTION inturn.replay(topic text, key text, seq bigint, reason text) RETURNS inturn.operator_action
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
CREATE FUNCTION inturn.amend(
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
CREATE FUNCTION inturn.pause(topic text, key text, reason text DEFAULT NULL, until timestamptz DEFAULT NULL)
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
CREATE FUNCTION inturn.resume(topic text, key text, reason text DEFAULT NULL) RETURNS inturn.operator_action
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

-- functions/pause_topic.sql
-- Keeps all keys of a topic standing still, until a time or for good; returns the recorded action.
--
-- Turns in hand end as ever, no other begins. Appends go on; nothing is lost. Paused already, it takes the new until.
-- Locks: the topic's row.
-- Raises IT041 when it is paused until the same time, or until is past; and what lock_topic raises.
CREATE FUNCTION inturn.pause_topic(topic text, reason text DEFAULT NULL, until timestamptz DEFAULT NULL)
RETURNS inturn.operator_action
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    was constant inturn.topic := inturn.lock_topic(topic);
    paused constant boolean := was.paused_at IS NOT NULL AND clock_timestamp() < coalesce(was.paused_until, 'infinity');
    settings inturn.topic;
BEGIN
    IF until <= clock_timestamp() THEN
        PERFORM inturn.refuse_action(topic, '', format('cannot be paused until %s, which is past', until), 'Give a later time.');
    ELSIF paused AND was.paused_until IS NOT DISTINCT FROM until THEN
        PERFORM inturn.refuse_action(topic, '', 'is paused already', 'Resume it, or give another time.');
    END IF;
    UPDATE inturn.topic t SET
        paused_at = CASE WHEN paused THEN t.paused_at ELSE clock_timestamp() END, paused_until = until
    WHERE t.name = pause_topic.topic RETURNING * INTO settings;
    RETURN inturn.record_action(topic, '', NULL, 'pause', reason, to_jsonb(was), to_jsonb(settings));
END
$$;
COMMENT ON FUNCTION inturn.pause_topic IS 'Keeps all keys of a topic standing still, until a time or for good.';

-- functions/resume_topic.sql
-- Lets the keys of a paused topic go on where they stood; returns the recorded action.
--
-- Locks: the topic's row. Raises IT041 when it is not paused, and what lock_topic raises.
CREATE FUNCTION inturn.resume_topic(topic text, reason text DEFAULT NULL) RETURNS inturn.operator_action
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    was constant inturn.topic := inturn.lock_topic(topic);
    settings inturn.topic;
BEGIN
    IF (was.paused_at IS NOT NULL AND clock_timestamp() < coalesce(was.paused_until, 'infinity')) IS NOT TRUE THEN
        PERFORM inturn.refuse_action(topic, '', 'is not paused', 'There is nothing to resume.');
    END IF;
    UPDATE inturn.topic t SET paused_at = NULL, paused_until = NULL WHERE t.name = resume_topic.topic RETURNING * INTO settings;
    PERFORM inturn.notify_appliers(topic);
    RETURN inturn.record_action(topic, '', NULL, 'resume', reason, to_jsonb(was), to_jsonb(settings));
END
$$;
COMMENT ON FUNCTION inturn.resume_topic IS 'Lets the keys of a paused topic go on where they stood.';

-- functions/set_topic.sql
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
