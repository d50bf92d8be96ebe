-- Work outside the database by lease, and numbers that callers give.
ALTER TABLE inturn.topic
    DROP CONSTRAINT topic_target_check,
    ADD CONSTRAINT topic_target_check CHECK (target = 'python' OR target LIKE 'sql:_%' OR target ~ '^https?://.'),
    ADD COLUMN numbering text NOT NULL DEFAULT 'assigned' CHECK (numbering IN ('assigned', 'given')),
    ADD COLUMN first_seq bigint NOT NULL DEFAULT 1 CHECK (first_seq >= 0),
    ADD COLUMN max_ahead bigint NOT NULL DEFAULT 10000 CHECK (max_ahead >= 1),
    ADD COLUMN gap_timeout interval CHECK (gap_timeout > '0'),
    ADD COLUMN lease interval NOT NULL DEFAULT '30 seconds' CHECK (lease > '0' AND lease <= '1 day'),
    ADD COLUMN max_in_flight integer NOT NULL DEFAULT 100 CHECK (max_in_flight BETWEEN 1 AND 10000);
ALTER TABLE inturn.key_cursor
    ADD COLUMN waiting_at timestamptz,
    ADD COLUMN claimed_by text,
    ADD COLUMN claimed_at timestamptz,
    ADD COLUMN lease_until timestamptz;
CREATE INDEX key_cursor_waiting ON inturn.key_cursor (topic, waiting_at) WHERE waiting_at IS NOT NULL;
CREATE INDEX key_cursor_leased ON inturn.key_cursor (topic, lease_until) WHERE lease_until IS NOT NULL;

COMMENT ON COLUMN inturn.topic.target IS 'python; sql:SCHEMA.FUNCTION, which takes one inturn.command; or the http(s):// address that commands are posted to.';
COMMENT ON COLUMN inturn.topic.numbering IS 'Who numbers a key''s commands: assigned, the append does; given, its callers do.';
COMMENT ON COLUMN inturn.topic.first_seq IS 'The first number of every key, where callers number.';
COMMENT ON COLUMN inturn.topic.max_ahead IS 'How far ahead of the last applied one a given number may be.';
COMMENT ON COLUMN inturn.topic.gap_timeout IS 'A key that has waited so long for a missing number is held; NULL: never.';
COMMENT ON COLUMN inturn.topic.lease IS 'How long an applier that works outside the database has a key without a sign of life.';
COMMENT ON COLUMN inturn.topic.max_in_flight IS 'How many keys one applier works on outside the database at a time.';

COMMENT ON COLUMN inturn.key_cursor.ready_at IS 'From when on an applier may claim the key; NULL: idle, held, paused or waiting.';
COMMENT ON COLUMN inturn.key_cursor.held_at IS 'Since when the key stands still because its next command failed for good; or was not appended in time: then waiting_at is set too.';
COMMENT ON COLUMN inturn.key_cursor.waiting_at IS 'Since when later numbers are there and the next one is missing.';
COMMENT ON COLUMN inturn.key_cursor.claimed_by IS 'Which applier has the key by lease; it stays until the next claim when the lease runs out.';
COMMENT ON COLUMN inturn.key_cursor.claimed_at IS 'Since when.';
COMMENT ON COLUMN inturn.key_cursor.lease_until IS 'When the lease runs out: from then on any applier may claim the key.';

-- functions/refuse_number.sql
-- Refuses a number that the topic cannot take from a caller, whatever the key holds. Internal to append. Takes no locks.
--
-- Raises IT005 beside an idempotency key, IT007 when the topic numbers by itself, or is to be given one and is not,
-- IT050 for a number below its first.
CREATE FUNCTION inturn.refuse_number(settings inturn.topic, key text, seq bigint, idempotency_key text) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    IF settings.numbering = 'assigned' THEN
        RAISE EXCEPTION USING ERRCODE = 'IT007',
            MESSAGE = format('seq %s was given for key %L, and topic %L numbers its commands itself', seq, key, settings.name),
            HINT = 'Leave seq out: the append assigns it (RETURNING seq gives it back). Or create a topic with numbering => ''given''.';
    ELSIF seq IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'IT007',
            MESSAGE = format('no seq was given for key %L, and topic %L takes its numbers from its callers', key, settings.name),
            HINT = 'Give the command''s number in its key: seq => 1, 2, 3, ...';
    ELSIF idempotency_key IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'IT005',
            MESSAGE = format('an idempotency key was given beside seq %s of key %L', seq, key),
            HINT = 'Leave it out: a given number is appended once.';
    ELSIF seq < settings.first_seq THEN
        RAISE EXCEPTION USING ERRCODE = 'IT050',
            MESSAGE = format('seq %s of key %L is below the first of topic %L, %s', seq, key, settings.name, settings.first_seq),
            HINT = 'Number the commands of every key from there on, without holes.';
    END IF;
END
$$;
COMMENT ON FUNCTION inturn.refuse_number IS 'Internal to append: refuses a number that the topic cannot take from a caller.';

-- functions/refuse_place.sql
-- Refuses a given number that the key has passed, or that is too far ahead of it. Internal to append. Takes no locks.
--
-- Raises IT052 for one that was passed over, IT053 for one further ahead than the topic's max_ahead.
CREATE FUNCTION inturn.refuse_place(settings inturn.topic, key text, seq bigint, applied_seq bigint) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    IF seq <= applied_seq THEN
        RAISE EXCEPTION USING ERRCODE = 'IT052',
            MESSAGE = format('seq %s of key %L of topic %L was passed over%s', seq, key, settings.name, (
                SELECT format(': %s', s.reason) FROM inturn.skip s
                WHERE s.topic = settings.name AND s.key = refuse_place.key AND s.seq = refuse_place.seq)),
            HINT = format('The key is at %s and does not go back: append it with a new number.', applied_seq);
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'IT053',
        MESSAGE = format('seq %s of key %L is over %s ahead of the last applied one, %s', seq, key, settings.max_ahead, applied_seq),
        HINT = 'Append the missing ones first, or raise the topic''s max_ahead.';
END
$$;
COMMENT ON FUNCTION inturn.refuse_place IS 'Internal to append: refuses a given number that is passed, or too far ahead.';

-- functions/is_there.sql
-- Says whether a given number is appended already, with the same content. Internal to append. Takes no locks.
--
-- What an operator amended is compared as its caller gave it.
-- Raises IT051 when it is there with other content.
CREATE FUNCTION inturn.is_there(topic text, key text, seq bigint, name text, payload jsonb) RETURNS boolean
LANGUAGE plpgsql STABLE
SET enable_seqscan = off
AS $$
DECLARE
    there inturn.command_log;
    original jsonb;
BEGIN
    SELECT * INTO there FROM inturn.command_log l
    WHERE l.topic = is_there.topic AND l.key = is_there.key AND l.seq = is_there.seq;
    IF NOT FOUND THEN
        RETURN false;
    ELSIF (there.name, there.payload) = (name, coalesce(payload, '{}')) THEN
        RETURN true;
    END IF;
    SELECT a.before INTO original FROM inturn.operator_action a
    WHERE a.topic = is_there.topic AND a.key = is_there.key AND a.seq = is_there.seq AND a.action = 'amend' ORDER BY a.id LIMIT 1;
    IF original IS NOT DISTINCT FROM jsonb_build_object('name', name, 'payload', coalesce(payload, '{}')) THEN
        RETURN true;
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'IT051',
        MESSAGE = format('seq %s of key %L of topic %L is there with other content: command %L of %s',
                         seq, key, topic, there.name, to_char(there.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"')),
        HINT = 'One of the two callers numbers wrongly. The one that is there stays.';
END
$$;
COMMENT ON FUNCTION inturn.is_there IS 'Internal to append: whether a given number is appended already, with the same content.';

-- functions/end_gap.sql
-- Ends a key's wait for a missing number, and the hold that came of waiting too long. Internal.
--
-- The caller holds the key's row in key_sequence, and the key is drained. Locks its row in key_cursor.
CREATE FUNCTION inturn.end_gap(topic text, key text) RETURNS void
LANGUAGE sql VOLATILE
SET enable_seqscan = off
AS $$
UPDATE inturn.key_cursor c SET waiting_at = NULL, held_at = NULL, attempts = 0, last_error = NULL, failed_at = NULL
WHERE c.topic = end_gap.topic AND c.key = end_gap.key AND c.waiting_at IS NOT NULL
$$;
COMMENT ON FUNCTION inturn.end_gap IS 'Internal: ends a key''s wait for a missing number.';

-- functions/find_gap.sql
-- Marks a drained key that has later numbers as waiting for the missing one; holds it when it has waited too long.
-- Internal to append, finish and the operators' functions. Only for topics whose callers number.
--
-- A key with a gap_timeout becomes ready when that is over, so that an applier's empty turn comes here again.
-- The caller holds the key's row in key_sequence. Locks the row in key_cursor, which no applier holds then; an operator may
-- have moved the cursor meanwhile, so all else is looked up after the lock.
CREATE FUNCTION inturn.find_gap(topic text, key text) RETURNS void
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    was inturn.key_cursor;
    since timestamptz;
    until timestamptz;
    paused boolean;
    late boolean;
BEGIN
    SELECT * INTO was FROM inturn.key_cursor c
    WHERE c.topic = find_gap.topic AND c.key = find_gap.key AND c.ready_at IS NULL AND c.held_at IS NULL FOR UPDATE;
    IF NOT FOUND
        OR NOT EXISTS (SELECT FROM inturn.key_sequence s
                       WHERE s.topic = was.topic AND s.key = was.key AND s.drained_seq = was.applied_seq)
        OR NOT EXISTS (SELECT FROM inturn.command_log l
                       WHERE l.topic = was.topic AND l.key = was.key AND l.seq > was.applied_seq + 1)
        OR EXISTS (SELECT FROM inturn.command_log l
                   WHERE l.topic = was.topic AND l.key = was.key AND l.seq = was.applied_seq + 1) THEN
        RETURN;
    END IF;
    since := coalesce(was.waiting_at, clock_timestamp());
    paused := was.paused_at IS NOT NULL AND clock_timestamp() < coalesce(was.paused_until, 'infinity');
    SELECT since + t.gap_timeout INTO until FROM inturn.topic t WHERE t.name = was.topic;
    late := until <= clock_timestamp() AND NOT paused;
    UPDATE inturn.key_cursor c SET
        waiting_at = since,
        ready_at = CASE WHEN NOT late AND NOT (paused AND c.paused_until IS NULL) AND until IS NOT NULL
                        THEN greatest(until, c.paused_until) END,
        paused_at = CASE WHEN paused THEN c.paused_at END,
        paused_until = CASE WHEN paused THEN c.paused_until END,
        held_at = CASE WHEN late THEN clock_timestamp() END,
        failed_at = CASE WHEN late THEN clock_timestamp() END,
        last_error = CASE WHEN late
                          THEN format('command %s was not appended within the topic''s gap_timeout', c.applied_seq + 1) END
    WHERE c.topic = was.topic AND c.key = was.key;
END
$$;
COMMENT ON FUNCTION inturn.find_gap IS 'Internal: marks a drained key that has later numbers as waiting, and holds it when that lasts too long.';

-- functions/append_given.sql
-- Appends a command under the number that its caller gives it, in any order of arrival, repeated at will. Internal to append.
--
-- The same number with the same content appends nothing and returns the number; what an operator amended counts as it was.
-- Locks, in this order, held to commit: the key's row in key_sequence; for a key that stands at the number before, or
-- before a gap, its row in key_cursor.
-- Raises IT007 when the topic numbers by itself, IT050 for a number below the first, IT051 for one that has other
-- content, IT052 for one that was passed over, IT053 for one too far ahead; and what refuse_command raises.
CREATE FUNCTION inturn.append_given(
    topic text, key text, seq bigint, name text, payload jsonb, idempotency_key text
) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    settings inturn.topic;
    drained bigint;
    applied bigint;
    awake boolean;
BEGIN
    SELECT * INTO settings FROM inturn.topic t WHERE t.name = append_given.topic;
    PERFORM inturn.refuse_command(topic, key, name, payload, idempotency_key);
    PERFORM inturn.refuse_number(settings, key, seq, idempotency_key);
    LOOP
        SELECT s.drained_seq INTO drained FROM inturn.key_sequence s
        WHERE s.topic = append_given.topic AND s.key = append_given.key FOR UPDATE;
        EXIT WHEN FOUND;
        -- known_seq below 0 marks the key for append: its numbers are given.
        INSERT INTO inturn.key_sequence (topic, key, drained_seq, known_seq)
        VALUES (append_given.topic, append_given.key, settings.first_seq - 1, -1) ON CONFLICT DO NOTHING;
        INSERT INTO inturn.key_cursor (topic, key, applied_seq)
        VALUES (append_given.topic, append_given.key, settings.first_seq - 1) ON CONFLICT DO NOTHING;
    END LOOP;

    SELECT c.applied_seq, c.ready_at <= clock_timestamp() INTO applied, awake FROM inturn.key_cursor c
    WHERE c.topic = append_given.topic AND c.key = append_given.key;
    IF inturn.is_there(topic, key, seq, name, payload) THEN
        RETURN seq;
    ELSIF seq <= applied OR seq > applied + settings.max_ahead THEN
        PERFORM inturn.refuse_place(settings, key, seq, applied);
    END IF;
    INSERT INTO inturn.command_log (topic, key, seq, name, payload)
    VALUES (append_given.topic, append_given.key, append_given.seq, append_given.name, coalesce(append_given.payload, '{}'))
    -- Never in the way here but at REPEATABLE READ and SERIALIZABLE, where it turns 23505 into 40001: run it again.
    ON CONFLICT DO NOTHING;
    -- An awake key cannot go idle now, which takes this lock. An applier may have it in hand, as when a gap has timed out,
    -- beside keys whose handlers are at work: waiting for its row would be waiting for them.
    IF awake THEN
        RETURN seq;
    ELSIF seq = drained + 1 THEN
        PERFORM inturn.end_gap(topic, key);
        PERFORM inturn.wake_key(topic, key);
    ELSE
        PERFORM inturn.find_gap(topic, key);
    END IF;
    RETURN seq;
END
$$;
COMMENT ON FUNCTION inturn.append_given IS 'Internal to append: appends a command under the number that its caller gives it.';

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
    WHERE t.name = append_first.topic AND t.numbering = 'assigned' AND octet_length(append_first.key) BETWEEN 1 AND 512
      AND coalesce(octet_length(append_first.idempotency_key), 1) BETWEEN 1 AND 512
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        PERFORM inturn.refuse_command(topic, key, name, payload, idempotency_key);
        PERFORM inturn.refuse_number(t, append_first.key, NULL, idempotency_key) FROM inturn.topic t
        WHERE t.name = append_first.topic AND t.numbering = 'given';
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
-- seq: the command's number, in a topic whose callers number (see append_given); NULL in every other.
-- Locks, in this order, held to commit: the key's row in key_sequence; for an idle key, its row in key_cursor.
-- Raises IT001 to IT005 (see refuse_command); 40001 when the caller's snapshot is older than the key's last append.
-- The last number is looked for in a statement after the lock: on the lock's own snapshot, numbers would repeat.
CREATE FUNCTION inturn.append(
    topic text, key text, name text,
    payload jsonb DEFAULT '{}', idempotency_key text DEFAULT NULL, seq bigint DEFAULT NULL
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
    IF seq IS NOT NULL THEN
        RETURN inturn.append_given(topic, key, seq, name, payload, idempotency_key);
    END IF;
    -- Every topic takes 1024 bytes of payload; only for more is its limit looked up.
    IF octet_length(name) BETWEEN 1 AND 128 IS NOT TRUE OR octet_length(payload::text) > 1024 THEN
        PERFORM inturn.refuse_command(topic, key, name, payload, idempotency_key);
    END IF;
    LOOP
        SELECT s.drained_seq, s.known_seq INTO drained, known FROM inturn.key_sequence s
        WHERE s.topic = append.topic AND s.key = append.key FOR UPDATE;
        EXIT WHEN FOUND;
        -- No row yet: this is the key's first command, unless another caller's has just committed.
        new_seq := inturn.append_first(topic, key, name, payload, idempotency_key);
        IF new_seq IS NOT NULL THEN
            RETURN new_seq;
        END IF;
    END LOOP;

    IF known < 0 THEN
        RETURN inturn.append_given(topic, key, NULL, name, payload, idempotency_key);
    END IF;
    known := greatest(drained, known);

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
-- Locks and raises what append does.
CREATE OR REPLACE FUNCTION inturn.append_from_outbox() RETURNS trigger
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    NEW.seq := inturn.append(NEW.topic, NEW.key, NEW.name, NEW.payload, NEW.idempotency_key, NEW.seq);
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
COMMENT ON FUNCTION inturn.claim(text, timestamptz, integer) IS 'Claims ready keys of a topic until the end of the transaction.';

-- functions/next_commands.sql
-- Returns the next commands of a key in order, up to the first gap. Internal to the claims. Takes no locks.
CREATE FUNCTION inturn.next_commands(topic text, key text, applied_seq bigint, max_commands integer)
RETURNS SETOF inturn.command_log
LANGUAGE sql STABLE
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
SELECT (c.l).* FROM (
    SELECT l, row_number() OVER (ORDER BY l.seq) AS place FROM inturn.command_log l
    WHERE l.topic = next_commands.topic AND l.key = next_commands.key AND l.seq > next_commands.applied_seq
    ORDER BY l.seq LIMIT max_commands) c
WHERE (c.l).seq = next_commands.applied_seq + c.place
$$;
COMMENT ON FUNCTION inturn.next_commands IS 'Internal to the claims: the next commands of a key in order, up to the first gap.';

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
        FROM inturn.next_commands(claim_commands.topic, claimed.key, claimed.applied_seq,
                                  CASE WHEN claimed.attempts > 0 THEN 1 ELSE max_commands END) l;
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
        claimed_by = NULL, claimed_at = NULL, lease_until = NULL,
        waiting_at = CASE WHEN t.applied_seq < t.from_seq THEN c.waiting_at END,
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
    PERFORM inturn.find_gap(t.name, k.key) FROM inturn.topic t CROSS JOIN unnest(keys) k (key)
    WHERE t.name = finish.topic AND t.numbering = 'given';
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
-- to_seq: NULL for all that are committed now, and the missing ones between them where callers number. They stay in the log. The caller holds the key's row in key_cursor and
-- moves its cursor; from_seq is its applied_seq + 1. Takes no other locks.
CREATE OR REPLACE FUNCTION inturn.pass_over(
    topic text, key text, from_seq bigint, to_seq bigint, epoch bigint, skipped_by text, reason text
) RETURNS bigint
LANGUAGE sql VOLATILE
SET enable_seqscan = off
AS $$
WITH passed AS (
    INSERT INTO inturn.skip (topic, key, seq, epoch, skipped_by, reason)
    SELECT pass_over.topic, pass_over.key, s.seq, pass_over.epoch, pass_over.skipped_by, left(pass_over.reason, 8000)
    FROM generate_series(from_seq, (
        SELECT l.seq FROM inturn.command_log l
        WHERE l.topic = pass_over.topic AND l.key = pass_over.key AND l.seq >= from_seq AND (l.seq = to_seq OR to_seq IS NULL)
        ORDER BY l.seq DESC LIMIT 1)) s (seq)
    RETURNING seq)
SELECT max(passed.seq) FROM passed
$$;
COMMENT ON FUNCTION inturn.pass_over IS 'Internal to fail and the operators'' functions: passes over commands, an entry in skip each.';

-- functions/record_failure.sql
-- Records a failure of command failed_seq, and what becomes of the key; returns the outcome. Internal to fail and claim.
--
-- was: the key's row in key_cursor, which the caller has locked. failures: how often the command has failed by now.
-- verdict, retry_after: see fail. from_seq: where the turn began; of a lease it is in turn already.
-- Takes no further locks.
CREATE FUNCTION inturn.record_failure(
    was inturn.key_cursor, epoch bigint, from_seq bigint, failed_seq bigint, failures integer,
    error text, applier text, started_at timestamptz, verdict text, retry_after interval
) RETURNS text
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    settings inturn.topic;
    outcome text;
    passed_seq bigint;
    paused boolean := was.paused_at IS NOT NULL AND clock_timestamp() < coalesce(was.paused_until, 'infinity');
BEGIN
    SELECT * INTO settings FROM inturn.topic t WHERE t.name = was.topic;
    outcome := CASE
        WHEN verdict = 'hold' THEN 'held' WHEN verdict = 'skip' THEN 'skipped'
        WHEN failures < settings.max_attempts THEN 'retrying'
        WHEN settings.on_exhausted = 'hold' THEN 'held' WHEN settings.on_exhausted = 'skip' THEN 'skipped'
        ELSE 'cancelled' END;
    IF outcome IN ('skipped', 'cancelled') THEN
        passed_seq := inturn.pass_over(was.topic, was.key, failed_seq, CASE outcome WHEN 'skipped' THEN failed_seq END, epoch,
                                       CASE verdict WHEN 'skip' THEN 'handler' ELSE 'attempts' END, split_part(error, E'\n', 1));
    END IF;
    UPDATE inturn.key_cursor c SET
        applied_seq = coalesce(passed_seq, failed_seq - 1), epoch = record_failure.epoch, empty_turns = 0,
        attempts = CASE WHEN passed_seq IS NULL THEN failures ELSE 0 END,
        last_error = CASE WHEN passed_seq IS NULL THEN left(error, 8000) END,
        failed_at = CASE WHEN passed_seq IS NULL THEN clock_timestamp() END,
        ready_at = CASE WHEN outcome = 'held' OR paused AND was.paused_until IS NULL THEN NULL
                        ELSE greatest(clock_timestamp() + CASE
                            WHEN outcome <> 'retrying' THEN '0'
                            WHEN retry_after IS NULL THEN inturn.backoff(settings, failures)
                            ELSE least(greatest(retry_after, '0'), '1 year') END, CASE WHEN paused THEN was.paused_until END) END,
        held_at = CASE outcome WHEN 'held' THEN clock_timestamp() END,
        paused_at = CASE WHEN paused AND outcome <> 'held' THEN c.paused_at END,
        paused_until = CASE WHEN paused AND outcome <> 'held' THEN c.paused_until END,
        claimed_by = NULL, claimed_at = NULL, lease_until = NULL, waiting_at = NULL
    WHERE c.topic = was.topic AND c.key = was.key;
    INSERT INTO inturn.turn AS t (topic, key, epoch, from_seq, to_seq, outcome, applier, started_at, error)
    VALUES (was.topic, was.key, record_failure.epoch, from_seq, failed_seq - 1, outcome, applier, record_failure.started_at, left(error, 8000))
    ON CONFLICT ON CONSTRAINT turn_pkey DO UPDATE SET
        outcome = EXCLUDED.outcome, error = EXCLUDED.error, finished_at = EXCLUDED.finished_at;
    RETURN outcome;
END
$$;
COMMENT ON FUNCTION inturn.record_failure IS 'Internal to fail and claim: records a failure, and what becomes of the key.';

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
    was inturn.key_cursor;
BEGIN
    PERFORM inturn.require_read_committed();
    SELECT * INTO was FROM inturn.key_cursor c
    WHERE c.topic = fail.topic AND c.key = fail.key AND c.xmax = pg_current_xact_id()::xid
      AND c.epoch = fail.epoch - 1 AND c.applied_seq = from_seq - 1;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'IT030',
            MESSAGE = format('turn %s of key %L of topic %L was fenced off: its claim is not held any more',
                             epoch, key, topic);
    END IF;
    RETURN inturn.record_failure(was, epoch, from_seq, failed_seq, CASE WHEN failed_seq > from_seq THEN 1 ELSE was.attempts + 1 END,
                                 error, applier, now(), verdict, retry_after);
END
$$;
COMMENT ON FUNCTION inturn.fail(text, text, bigint, bigint, bigint, text, text, text, interval) IS 'Ends a turn whose last command failed: records the error, and what becomes of the key.';

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
-- Where the callers number, only up to the first gap: numbering the rows costs a tenth of a deep drain, so only there.
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
                SELECT l.*%s FROM inturn.command_log l
                WHERE l.topic = $1 AND l.key = t.key AND l.seq > t.applied_seq ORDER BY l.seq LIMIT $4) l
            WHERE %sclock_timestamp() < $6
            OFFSET 0) c
        GROUP BY c.key
        OFFSET 0) k
$query$, inturn.target_function(topic, target)::oid::regproc,
    CASE WHEN given THEN ', row_number() OVER (ORDER BY l.seq) AS place' END,
    CASE WHEN given THEN 'l.seq = t.applied_seq + l.place AND ' END)
FROM (SELECT EXISTS (SELECT FROM inturn.topic t WHERE t.name = target_query.topic AND t.numbering = 'given') AS given) numbering
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
        WHEN (topic.target = 'python' OR topic.target LIKE 'sql:_%' OR topic.target ~ '^https?://.') IS NOT TRUE
            THEN format('target is %s; python, sql:SCHEMA.FUNCTION, http://... and https://... are allowed', coalesce(quote_literal(topic.target), 'NULL'))
        WHEN topic.target ~ '^https?://[^/?#]*@'
            THEN 'its target holds a user or a password, which would be readable here; secrets come from the applier''s environment'
        WHEN topic.target ~ '^https?:' AND topic.target ~ '[[:space:][:cntrl:]#\\]'
            THEN 'its target holds a space, a backslash or a fragment (#), and is no address'
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
        WHEN (topic.numbering IN ('assigned', 'given')) IS NOT TRUE
            THEN format('numbering is %s; assigned or given are allowed', coalesce(quote_literal(topic.numbering), 'NULL'))
        WHEN (topic.first_seq BETWEEN 0 AND 1000000000000000000) IS NOT TRUE OR topic.numbering = 'assigned' AND topic.first_seq <> 1
            THEN format('first_seq is %s; with numbering given 0 to 10^18 are allowed, else 1', coalesce(topic.first_seq::text, 'NULL'))
        WHEN (topic.max_ahead BETWEEN 1 AND 1000000000) IS NOT TRUE
            THEN format('max_ahead is %s; 1 to 1000000000 are allowed', coalesce(topic.max_ahead::text, 'NULL'))
        WHEN topic.gap_timeout <= '0' THEN format('gap_timeout is %s; it must be over 0, or NULL', topic.gap_timeout)
        WHEN (topic.lease > '0' AND topic.lease <= '1 day') IS NOT TRUE
            THEN format('lease is %s; over 0 and up to 1 day are allowed', coalesce(topic.lease::text, 'NULL'))
        WHEN (topic.max_in_flight BETWEEN 1 AND 10000) IS NOT TRUE
            THEN format('max_in_flight is %s; 1 to 10000 are allowed', coalesce(topic.max_in_flight::text, 'NULL'))
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
-- target: 'python'; 'sql:SCHEMA.FUNCTION', a function that takes one inturn.command; or an address, 'http://...'.
-- numbering: 'assigned', or 'given': callers number the commands of each key from first_seq on.
-- Locks: none beyond the new row.
-- Raises IT010 when the topic exists with other settings, and what check_topic raises.
CREATE FUNCTION inturn.create_topic(
    name text, target text DEFAULT 'python', max_attempts integer DEFAULT 5,
    backoff_base interval DEFAULT '1 second', backoff_cap interval DEFAULT '5 minutes',
    max_payload_bytes integer DEFAULT 1048576, batch_commands integer DEFAULT 100, on_exhausted text DEFAULT 'hold',
    numbering text DEFAULT 'assigned', first_seq bigint DEFAULT 1, max_ahead bigint DEFAULT 10000,
    gap_timeout interval DEFAULT NULL, lease interval DEFAULT '30 seconds', max_in_flight integer DEFAULT 100
) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    topic constant inturn.topic :=
        ROW(name, target, max_attempts, backoff_base, backoff_cap, max_payload_bytes, batch_commands, clock_timestamp(),
            on_exhausted, NULL, NULL, numbering, first_seq, max_ahead, gap_timeout, lease, max_in_flight);
BEGIN
    PERFORM inturn.check_topic(topic);
    INSERT INTO inturn.topic SELECT topic.* ON CONFLICT DO NOTHING;
    IF FOUND THEN
        RETURN true;
    END IF;
    PERFORM FROM inturn.topic t WHERE t.name = topic.name
        AND to_jsonb(t) - '{created_at,paused_at,paused_until}'::text[] = to_jsonb(topic) - '{created_at,paused_at,paused_until}'::text[];
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
-- 5 seconds while it is not at work. doing: applying (since its transaction began, or it claimed the first of its leases
-- that run), idle, or gone (since it was seen). One that never said that it is there is known by its leases while they run.
-- topic, key, seq: the first key of the transaction or of the leases at work, and its next command; NULL where that cannot
-- be told: of a transaction it is looked for among the keys of each topic that have been ready the longest.
-- waits_for: what its query waits for. leases: how many keys it has by lease now.
-- Runs as its owner, so that an operator sees other users' sessions; the owner needs pg_monitor, or is a superuser.
CREATE FUNCTION inturn.list_appliers()
RETURNS TABLE (
    applier text, topics text[], host text, pid integer, backend_pid integer, revision text,
    started_at timestamptz, seen_at timestamptz, alive boolean, doing text, since timestamptz,
    topic text, key text, seq bigint, waits_for text, leases bigint
)
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
-- Before 18 a table that has to be read whole costs so much under these settings that it would be compiled for.
SET jit = off
AS $$
WITH lease AS MATERIALIZED (
    SELECT c.claimed_by, count(*) AS leases, array_agg(DISTINCT t.name) AS topics, min(c.claimed_at) AS since,
           max(c.claimed_at) AS seen_at, (array_agg(c.cursor ORDER BY c.claimed_at))[1] AS first
    FROM inturn.topic t CROSS JOIN LATERAL (
        SELECT c.claimed_by, c.claimed_at, c AS cursor FROM inturn.key_cursor c
        WHERE c.topic = t.name AND c.lease_until > statement_timestamp()) c
    GROUP BY c.claimed_by
)
SELECT p.applier, p.topics, p.host, p.pid, p.backend_pid, p.revision, p.started_at, p.seen_at, d.alive,
       CASE WHEN NOT d.alive THEN 'gone' WHEN claim.xid IS NOT NULL OR h.leases > 0 THEN 'applying' ELSE 'idle' END,
       CASE WHEN NOT d.alive THEN p.seen_at WHEN claim.xid IS NOT NULL THEN a.xact_start
            WHEN h.leases > 0 THEN h.since ELSE a.state_change END,
       coalesce(turn.topic, (h.first).topic), coalesce(turn.key, (h.first).key),
       coalesce(turn.applied_seq, (h.first).applied_seq) + 1,
       CASE WHEN d.alive AND claim.xid IS NOT NULL THEN inturn.session_waits_for(a.pid) END, coalesce(h.leases, 0)
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
LEFT JOIN lease h ON h.claimed_by = p.applier
UNION ALL
SELECT h.claimed_by, h.topics, NULL, NULL, NULL, NULL, h.since, h.seen_at, true, 'applying', h.since,
       (h.first).topic, (h.first).key, (h.first).applied_seq + 1, NULL, h.leases
FROM lease h WHERE NOT EXISTS (SELECT FROM inturn.applier p WHERE p.applier = h.claimed_by)
ORDER BY 9 DESC, 1
$$;
COMMENT ON FUNCTION inturn.list_appliers IS 'Lists the appliers of the last day, whether each is alive, and what it does now.';

-- functions/key_state.sql
-- Returns the state of a key: held (its next command failed for good; or was not appended in time: then waiting_at is set
-- too), paused, leased (an applier works on it outside the database), waiting (for a number that nobody has appended),
-- retrying (its next command failed and is tried again), ready or idle.
-- Takes no locks. What is pending on a paused or held key it does not say.
CREATE OR REPLACE FUNCTION inturn.key_state(c inturn.key_cursor) RETURNS text
LANGUAGE sql STABLE
AS $$
SELECT CASE
    WHEN c.held_at IS NOT NULL THEN 'held'
    WHEN c.paused_at IS NOT NULL AND statement_timestamp() < coalesce(c.paused_until, 'infinity') THEN 'paused'
    WHEN statement_timestamp() < c.lease_until THEN 'leased'
    WHEN c.waiting_at IS NOT NULL THEN 'waiting'
    WHEN c.ready_at IS NULL THEN 'idle'
    WHEN c.attempts > 0 THEN 'retrying'
    ELSE 'ready' END
$$;
COMMENT ON FUNCTION inturn.key_state IS 'The state of a key: held, paused, leased, waiting, retrying, ready or idle.';

-- functions/keys_query.sql
DROP FUNCTION inturn.keys_query;
-- Returns the query by which list_keys reads the keys of one state, from that state's own index. Internal to list_keys.
--
-- state: one of key_state's; or deep: those in the states $6 on which more than 32 commands may be pending. Such a key's
-- known_seq is past its drained_seq, for every 32nd command of a key that is not drained moves known_seq.
-- order_by: what comes before the state's own order, with a comma at its end.
-- numbered: only of topics whose callers number, and only where more than 32 commands are pending, which known_seq does
-- not tell there; all of them, whatever $5.
-- $1 topic, $2 pattern of the key, $3 least number pending, $4 appended by then at the latest: NULL for any; $5 how many.
-- What is pending is looked for by subqueries: from a join, or from EXISTS, a planner may read the whole log.
CREATE FUNCTION inturn.keys_query(state text, order_by text DEFAULT '', numbered boolean DEFAULT false) RETURNS text
LANGUAGE sql IMMUTABLE
AS $$
SELECT format($query$
SELECT c.*, CASE c.state WHEN 'held' THEN c.held_at WHEN 'paused' THEN c.paused_at WHEN 'waiting' THEN c.waiting_at
                         WHEN 'leased' THEN c.lease_until ELSE c.ready_at END AS at
FROM inturn.topic t CROSS JOIN LATERAL (
    SELECT c.* FROM %s
    WHERE c.topic = t.name AND %s
      AND ($2 IS NULL OR c.key LIKE $2)
      AND (%s IS NULL OR CASE WHEN t.numbering = 'assigned'
           THEN (SELECT l.seq FROM inturn.command_log l
                 WHERE l.topic = c.topic AND l.key = c.key AND l.seq = c.applied_seq + $3)
           ELSE (SELECT l.seq FROM inturn.command_log l
                 WHERE l.topic = c.topic AND l.key = c.key AND l.seq > c.applied_seq
                 ORDER BY l.seq OFFSET greatest(%s, 1) - 1 LIMIT 1) END IS NOT NULL)
      AND ($4 IS NULL OR CASE WHEN t.numbering = 'assigned'
           THEN (SELECT l.created_at FROM inturn.command_log l
                 WHERE l.topic = c.topic AND l.key = c.key AND l.seq = c.applied_seq + 1)
           ELSE (SELECT min(l.created_at) FROM inturn.command_log l
                 WHERE l.topic = c.topic AND l.key = c.key AND l.seq > c.applied_seq) END <= $4)
    %s) c
WHERE ($1 IS NULL OR t.name = $1)%s
$query$,
    CASE WHEN state = 'deep' THEN 'inturn.key_sequence s CROSS JOIN LATERAL ' ELSE '' END
    || '(SELECT c.*, inturn.key_state(c) AS state FROM inturn.key_cursor c'
    -- OFFSET 0, or a planner may begin with the cursors.
    || CASE WHEN state = 'deep' THEN ' WHERE c.topic = s.topic AND c.key = s.key OFFSET 0' ELSE '' END || ') c',
    CASE state
        WHEN 'held' THEN 'c.held_at IS NOT NULL'
        WHEN 'waiting' THEN 'c.waiting_at IS NOT NULL'
        WHEN 'retrying' THEN 'c.attempts > 0 AND c.ready_at IS NOT NULL'
        WHEN 'paused' THEN 'c.paused_at IS NOT NULL'
        WHEN 'leased' THEN 'c.lease_until IS NOT NULL'
        WHEN 'ready' THEN 'c.ready_at IS NOT NULL'
        WHEN 'idle' THEN 'c.ready_at IS NULL AND c.held_at IS NULL'
        ELSE 's.topic = t.name AND s.known_seq > s.drained_seq AND s.known_seq - s.drained_seq >= coalesce($3, 0) - 32'
    END || CASE WHEN state = 'deep' THEN ' AND c.state = ANY ($6)' ELSE format(' AND c.state = %L', state) END,
    n.least, n.least,
    CASE WHEN state <> 'deep' AND NOT numbered THEN format('ORDER BY %s LIMIT $5', order_by || CASE state
        WHEN 'held' THEN 'c.held_at' WHEN 'waiting' THEN 'c.waiting_at' WHEN 'paused' THEN 'c.paused_at'
        WHEN 'leased' THEN 'c.lease_until' WHEN 'idle' THEN 'c.key' ELSE 'c.ready_at' END) END,
    CASE WHEN numbered THEN ' AND t.numbering = ''given''' END)
FROM (SELECT CASE WHEN numbered THEN 'greatest($3, 33)' ELSE '$3' END) n (least)
$$;
COMMENT ON FUNCTION inturn.keys_query IS 'Internal to list_keys: the query that reads the keys of one state.';

-- functions/list_keys.sql
DROP FUNCTION inturn.list_keys;
-- Lists keys and where they stand, the worst first: held, waiting (the longest first), retrying (the next attempt soonest
-- first), paused, leased (the lease that ends soonest first), ready (the longest first), idle. Takes no locks.
--
-- of_topic, of_state: NULL for all; several states are separated by commas. of_like: a LIKE pattern that the key matches.
-- older_than: the next command was appended so long ago, or longer. min_lag: at least so many commands are pending.
-- sort_by: lag, age (of the next command) or attempts, the greatest first.
-- state: see key_state; what its topic does, topic_paused says. pending counts commands that are committed and not
-- applied; oldest_pending_at is when the next one was appended; last_error is of its latest attempt. Where callers number,
-- the next one may be missing: pending counts what is there, and oldest_pending_at is the first that came of it.
-- waiting_at: since when it is missing. claimed_by, lease_until: who had or has the key by lease.
--
-- Each state is read from its own index, and only as far as max_keys: quick with millions of keys. Every filter is exact;
-- a filter by age, or by a lag of at most 32, looks into the log for each key that is not idle until it has found
-- max_keys: where a million are pending and none matches, that takes two seconds; and so does one by a greater lag where
-- callers number. Sorted by attempts, and by lags over 32, the list is exact. Sorted by age or lesser lags it is exact while no state but idle has more than 20,000 keys that
-- pass the filters; beyond, it is that of the worst 20,000 of each such state, and a WARNING says so.
-- Raises IT044 for a state or sort_by that does not exist.
CREATE FUNCTION inturn.list_keys(
    of_topic text DEFAULT NULL, of_state text DEFAULT NULL, max_keys integer DEFAULT 50,
    of_like text DEFAULT NULL, older_than interval DEFAULT NULL, min_lag bigint DEFAULT NULL, sort_by text DEFAULT NULL
) RETURNS TABLE (
    topic text, key text, state text, applied_seq bigint, last_seq bigint, pending bigint,
    oldest_pending_at timestamptz, attempts integer, ready_at timestamptz, held_at timestamptz, last_error text,
    paused_at timestamptz, paused_until timestamptz, topic_paused boolean,
    waiting_at timestamptz, claimed_by text, lease_until timestamptz
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
    ranks constant text[] := '{held,waiting,retrying,paused,leased,ready,idle}';
    most bigint := greatest(max_keys, 20000);
    deep_lag constant bigint := 32;
    states text[] := coalesce(string_to_array(of_state, ','), ranks);
    appended_by constant timestamptz := statement_timestamp() - older_than;
    listed bigint := 0;
    passing bigint;
    bounded boolean := false;
    parts text[] := '{}';
    part text;
    deep text[];
    details constant text := $query$
        SELECT c.topic, c.key, c.state, c.applied_seq, l.last_seq,
               CASE t.numbering WHEN 'given' THEN g.pending ELSE l.last_seq - c.applied_seq END,
               coalesce(g.first_at, o.created_at), c.attempts, c.ready_at, c.held_at, c.last_error, c.paused_at, c.paused_until,
               t.paused_at IS NOT NULL AND statement_timestamp() < coalesce(t.paused_until, 'infinity'),
               c.waiting_at, c.claimed_by, c.lease_until
        FROM (%s) c
        JOIN inturn.topic t ON t.name = c.topic
        CROSS JOIN LATERAL (
            SELECT greatest(c.applied_seq, (SELECT max(l.seq) FROM inturn.command_log l
                                            WHERE l.topic = c.topic AND l.key = c.key)) AS last_seq) l
        LEFT JOIN inturn.command_log o ON o.topic = c.topic AND o.key = c.key AND o.seq = c.applied_seq + 1
        CROSS JOIN LATERAL (
            SELECT count(*) AS pending, min(l.created_at) AS first_at FROM inturn.command_log l
            WHERE t.numbering = 'given' AND l.topic = c.topic AND l.key = c.key AND l.seq > c.applied_seq) g
        ORDER BY %s array_position($7, c.state), c.at, c.key, c.topic LIMIT $8$query$;
BEGIN
    IF NOT states <@ ranks OR states = '{}' THEN
        RAISE EXCEPTION USING ERRCODE = 'IT044', MESSAGE = format('there is no state %L', of_state),
            HINT = 'Give one of held, waiting, retrying, paused, leased, ready, idle, or several with commas between them.';
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

    deep := ARRAY[inturn.keys_query('deep')];
    IF EXISTS (SELECT FROM inturn.topic t WHERE t.numbering = 'given' AND (of_topic IS NULL OR t.name = of_topic)) THEN
        deep := deep || ARRAY(SELECT inturn.keys_query(s, numbered => true) FROM unnest(states) s WHERE s <> 'idle');
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
        parts := deep;
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
            parts := parts || deep;
        END IF;
    END IF;
    FOR topic, key, state, applied_seq, last_seq, pending, oldest_pending_at, attempts, ready_at, held_at, last_error,
        paused_at, paused_until, topic_paused, waiting_at, claimed_by, lease_until
    IN EXECUTE format(details, '(' || array_to_string(parts, CASE WHEN bounded THEN ') UNION (' ELSE ') UNION ALL (' END) || ')',
                      CASE sort_by WHEN 'lag' THEN 'CASE t.numbering WHEN ''given'' THEN g.pending ELSE l.last_seq - c.applied_seq END DESC,'
                                   WHEN 'age' THEN 'coalesce(g.first_at, o.created_at),'
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
    paused_at timestamptz, paused_until timestamptz, waiting bigint, leased bigint
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
       p.pending + greatest(k.held + k.retrying + k.paused + k.ready + k.waiting + k.leased - p.keys, 0), p.oldest_pending_at,
       k.held + k.retrying + k.paused + k.ready + k.waiting + k.leased <= p.keys,
       coalesce(y.applied, 0)::bigint, coalesce(y.failed, 0), s.paused_at, s.paused_until, k.waiting, k.leased
FROM inturn.topic t
CROSS JOIN LATERAL (SELECT
    (SELECT count(*) FROM inturn.key_cursor c WHERE c.topic = t.name AND c.held_at IS NOT NULL) AS held,
    (SELECT count(*) FROM inturn.key_cursor c WHERE c.topic = t.name AND c.attempts > 0 AND c.ready_at IS NOT NULL
                                                AND inturn.key_state(c) = 'retrying') AS retrying,
    (SELECT count(*) FROM inturn.key_cursor c WHERE c.topic = t.name AND c.paused_at IS NOT NULL
                                                AND inturn.key_state(c) = 'paused') AS paused,
    (SELECT count(*) FROM inturn.key_cursor c WHERE c.topic = t.name AND c.ready_at IS NOT NULL
                                                AND inturn.key_state(c) = 'ready') AS ready,
    (SELECT count(*) FROM inturn.key_cursor c WHERE c.topic = t.name AND c.waiting_at IS NOT NULL
                                                AND inturn.key_state(c) = 'waiting') AS waiting,
    (SELECT count(*) FROM inturn.key_cursor c WHERE c.topic = t.name AND c.lease_until IS NOT NULL
                                                AND inturn.key_state(c) = 'leased') AS leased) k
CROSS JOIN LATERAL (
    SELECT count(*) AS keys, coalesce(sum(l.pending), 0)::bigint AS pending, min(l.oldest_pending_at) AS oldest_pending_at
    FROM inturn.list_keys(t.name, 'held,waiting,retrying,paused,leased,ready', 50000) l) p
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
       AND a.seq BETWEEN lo AND hi AND a.action IN ('skip', 'cancel-rest', 'replay', 'amend', 'fill-gap')
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
--   turns and skips cover 1 to applied_seq, each number once, under epochs from 1 to the cursor's, that rise with seq;
--   each skip belongs to a turn that skipped or cancelled, or to the operator's action under its epoch, and the other way
--   round; what operators replayed and amended is in the log; and a key with something pending does not sleep.
-- Where callers number, the first is the topic's first_seq; beyond applied_seq the log may have holes, up to it only where
-- an operator filled the gap, or all that was pending was cancelled. A key waits if and only if it stands before a hole.
-- A lease is whole, or there is none; no applier may claim the key while it runs, and one comes when it is over.
-- Epochs may have holes: a lease takes one when it is claimed, and leaves no row when nothing came of it. Whether there
-- ever was a lease nothing tells; a turn that is lost is still found by the numbers it applied.
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
-- given: callers number. base: the number before the first.
numbers AS MATERIALIZED (
    SELECT count(*) > 0 AS given, coalesce(max(t.first_seq) - 1, 0) AS base FROM inturn.topic t
    WHERE t.name = of_topic AND t.numbering = 'given'
),
command AS MATERIALIZED (
    SELECT l.key, count(*) AS commands, max(l.seq) AS last_seq, count(*) FILTER (WHERE l.seq <> l.before + 1) AS faults
    FROM (SELECT l.key, l.seq, lag(l.seq, 1, (SELECT n.base FROM numbers n)) OVER (PARTITION BY l.key ORDER BY l.seq) AS before
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
    SELECT key, k.commands, coalesce(k.last_seq, n.base) AS last_seq, k.faults,
           coalesce(r.hi, n.base) AS hi, coalesce(r.epoch, 0) AS last_epoch,
           s.copy AS sequences, s.drained_seq, s.known_seq, c.copy AS cursors, coalesce(c.applied_seq, n.base) AS applied_seq,
           c.epoch, c.ready_at, c.held_at, c.paused_at, c.paused_until, c.waiting_at, c.claimed_by, c.claimed_at, c.lease_until,
           c.paused_at IS NOT NULL AND c.paused_until IS NULL AS paused, n.given, n.base
    FROM numbers n CROSS JOIN (command k FULL JOIN sequence s USING (key) FULL JOIN cursor c USING (key) FULL JOIN reach r USING (key))
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
      AND a.action IN ('skip', 'cancel-rest', 'replay', 'amend', 'fill-gap')
),
-- An operator's entries in skip, and the action that says so. after is free JSON: compared, never cast.
acted AS (
    SELECT coalesce(p.key, a.key) AS key, p.epoch, coalesce(p.lo, a.seq) AS lo, coalesce(p.hi, a.seq) AS hi, a.action
    FROM (SELECT * FROM passed p WHERE p.by_operator) p
    FULL JOIN (SELECT * FROM action a WHERE a.action IN ('skip', 'cancel-rest', 'fill-gap')) a
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
    SELECT CASE WHEN l.seq <= k.base THEN CASE WHEN k.given THEN 'seq-below-first' ELSE 'seq-below-one' END
                WHEN l.seq = l.before THEN 'seq-repeated' ELSE 'seq-missing' END,
           k.key, CASE WHEN l.seq > l.before + 1 AND l.seq > k.base THEN h.lo ELSE l.seq END,
           CASE WHEN l.seq <= k.base THEN format('command %s has a number below %s', l.seq, k.base + 1)
                WHEN l.seq = l.before THEN format('there is more than one command %s', l.seq)
                ELSE format('command%s missing before %s', CASE WHEN h.lo = h.hi THEN format(' %s is', h.lo)
                            ELSE format('s %s to %s are', h.lo, h.hi) END, l.seq) END,
           '{key_sequence,key_cursor,command_log,skip}', '{}', l.before, l.seq
    FROM key k CROSS JOIN LATERAL (
        SELECT l.seq, lag(l.seq, 1, k.base) OVER (ORDER BY l.seq) AS before FROM inturn.command_log l
        WHERE l.topic = of_topic AND l.key = k.key) l
    CROSS JOIN LATERAL (SELECT greatest(l.before, k.base) + 1 AS lo,
                               CASE WHEN k.given THEN least(l.seq - 1, k.applied_seq) ELSE l.seq - 1 END AS hi) h
    WHERE k.faults > 0 AND l.seq <> l.before + 1 AND NOT (l.seq = k.base + 1 AND l.before <= k.base)
      -- A hole that is accounted for: each of its numbers was passed over as one that was not there.
      AND NOT (k.given AND l.seq > k.base AND l.seq > l.before AND h.hi - h.lo + 1 <= (
          SELECT count(*) FROM inturn.skip p
          WHERE h.hi >= h.lo AND p.topic = of_topic AND p.key = k.key AND p.seq BETWEEN h.lo AND h.hi
            AND CASE p.skipped_by
                WHEN 'operator' THEN NOT EXISTS (SELECT FROM inturn.operator_action a WHERE a.topic = of_topic AND a.key = k.key
                                                 AND a.seq = p.seq AND a.action = 'skip')
                WHEN 'attempts' THEN NOT EXISTS (SELECT FROM inturn.turn u WHERE u.topic = of_topic AND u.key = k.key
                                                 AND u.epoch = p.epoch AND u.to_seq + 1 = p.seq)
                ELSE false END))
    UNION ALL
    SELECT 'gap-not-empty', a.key, a.seq, format('an operator filled the gap at %s, and there is a command %s', a.seq, a.seq),
           '{command_log,skip,operator_action}', '{}', a.seq, a.seq
    FROM action a WHERE a.action = 'fill-gap' AND (
        SELECT true FROM inturn.command_log l WHERE l.topic = of_topic AND l.key = a.key AND l.seq = a.seq LIMIT 1) IS NOT NULL
    UNION ALL
    SELECT 'numbering-mixed', k.key, NULL,
           format('known_seq is %s, where %s', k.known_seq, CASE WHEN k.given THEN 'callers number: append would number too'
                  ELSE 'append numbers: it would ask for a number' END),
           '{key_sequence}', '{}', NULL, NULL
    FROM key k WHERE (k.known_seq < 0) <> k.given
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
           format('applied_seq is %s, the commands are %s to %s', k.applied_seq, k.base + 1, k.last_seq),
           '{key_cursor}', '{}', NULL, NULL
    FROM key k WHERE k.applied_seq < k.base OR k.applied_seq > k.last_seq
    UNION ALL
    SELECT 'passed-unaccounted', k.key, greatest(c.reached, k.base) + 1,
           format('applied_seq is %s, yet no turn and no skip accounts for %s', k.applied_seq,
                  concat_ws(' to ', greatest(c.reached, k.base) + 1,
                            nullif(least(c.lo - 1, k.applied_seq), greatest(c.reached, k.base) + 1))),
           '{key_cursor,turn,skip}', ARRAY[c.epoch_before, c.epoch], c.reached, c.lo
    FROM (SELECT c.* FROM cover c CROSS JOIN numbers n WHERE c.lo > coalesce(c.reached, n.base) + 1) c JOIN key k USING (key)
    WHERE greatest(c.reached, k.base) < k.applied_seq
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
    FROM numbers n CROSS JOIN walk w CROSS JOIN LATERAL (VALUES
        ('epoch-repeated', w.epoch = w.epoch_before AND (w.kind = 1 AND w.after_skipping) IS NOT TRUE),
        ('epoch-below-one', w.epoch < 1),
        ('epoch-order', w.epoch > w.epoch_before AND w.lo < w.lo_before),
        ('turn-order', w.ended_at < w.ended_before - interval '1 minute'),
        ('turn-malformed', w.kind = 0 AND (
            w.outcome IN ('applied', 'retrying', 'held', 'skipped', 'cancelled') AND w.well = (w.outcome = 'applied')
            AND w.lo > n.base AND w.hi >= CASE w.outcome WHEN 'applied' THEN w.lo ELSE w.lo - 1 END
            AND w.ended_at >= w.started_at - interval '1 minute') IS NOT TRUE),
        ('turn-without-skip', w.kind = 0 AND w.outcome IN ('skipped', 'cancelled') AND (
            w.epoch_after = w.epoch AND w.kind_after = 1 AND w.lo_after = w.hi + 1
            AND (w.outcome = 'cancelled' OR w.hi_after = w.lo_after)) IS NOT TRUE),
        ('skip-without-turn', w.kind = 1 AND (w.epoch = w.epoch_before AND w.after_skipping) IS NOT TRUE)
    ) f (violation, broken)
    WHERE f.broken
    UNION ALL
    SELECT 'epoch-ahead', k.key, NULL,
           format('the cursor is at epoch %s, the last one recorded is %s', k.epoch, k.last_epoch),
           '{key_cursor,turn}', ARRAY[k.last_epoch], NULL, NULL
    FROM key k WHERE k.last_epoch > k.epoch

    -- P4
    UNION ALL
    SELECT 'idle-pending', k.key, k.applied_seq + 1,
           format('it is idle with commands pending, from %s to %s: no applier will come', k.applied_seq + 1, k.last_seq),
           '{key_sequence,key_cursor,command_log}', '{}', k.applied_seq + 1, k.applied_seq + 1
    FROM key k WHERE k.last_seq > k.applied_seq AND k.cursors IS NOT NULL
      AND k.ready_at IS NULL AND k.held_at IS NULL AND NOT k.paused AND k.waiting_at IS NULL
    UNION ALL
    SELECT 'waiting-without-gap', k.key, k.applied_seq + 1,
           format('it waits for %s, %s', k.applied_seq + 1, CASE WHEN NOT k.given THEN 'and its callers do not number'
                  WHEN k.last_seq <= k.applied_seq THEN 'and nothing later is there' ELSE 'which is there' END),
           '{key_sequence,key_cursor,command_log}', '{}', k.applied_seq + 1, k.applied_seq + 1
    FROM key k WHERE k.waiting_at IS NOT NULL AND (NOT k.given OR k.last_seq <= k.applied_seq OR (
        SELECT true FROM inturn.command_log l
        WHERE l.topic = of_topic AND l.key = k.key AND l.seq = k.applied_seq + 1 LIMIT 1) IS NOT NULL)
    UNION ALL
    SELECT 'lease-malformed', k.key, k.applied_seq + 1,
           format('its lease cannot be: of %s, since %s, until %s%s', coalesce(k.claimed_by, 'nobody'), k.claimed_at, k.lease_until,
                  CASE WHEN k.held_at IS NOT NULL THEN ', and it is held' WHEN k.waiting_at IS NOT NULL THEN ', and it waits' ELSE '' END),
           '{key_cursor}', '{}', NULL, NULL
    FROM key k WHERE num_nonnulls(k.claimed_by, k.claimed_at, k.lease_until) NOT IN (0, 3)
       OR k.lease_until IS NOT NULL AND (k.held_at IS NOT NULL OR k.waiting_at IS NOT NULL)
    UNION ALL
    SELECT 'lease-unguarded', k.key, k.applied_seq + 1,
           format('%s has it by lease until %s, and it is ready at %s: another applier could claim it', k.claimed_by, k.lease_until, k.ready_at),
           '{key_cursor}', '{}', NULL, NULL
    FROM key k WHERE k.ready_at < k.lease_until
    UNION ALL
    SELECT 'lease-endless', k.key, k.applied_seq + 1,
           format('%s has it by lease until %s, and it is not ready then: no applier will come', k.claimed_by, k.lease_until),
           '{key_cursor}', '{}', NULL, NULL
    FROM key k WHERE k.lease_until IS NOT NULL AND k.ready_at IS NULL AND NOT k.paused
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
    FROM key k WHERE k.cursors IS NOT NULL AND (k.drained_seq > k.applied_seq OR k.drained_seq < k.base
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

-- functions/is_append_open.sql
-- Returns whether a transaction that is still open has appended this number of a key. Internal.
--
-- Its row cannot be seen: to insert the same one is to wait for it, which is tried for a moment and undone.
-- Where that cannot be done (read-only), returns false.
CREATE FUNCTION inturn.is_append_open(topic text, key text, seq bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET lock_timeout = '20ms'
AS $$
BEGIN
    IF NOT current_setting('transaction_read_only')::boolean THEN
        INSERT INTO inturn.command_log (topic, key, seq, name, payload)
        VALUES (is_append_open.topic, is_append_open.key, is_append_open.seq, '?', '{}') ON CONFLICT DO NOTHING;
        RAISE EXCEPTION USING ERRCODE = 'IT000';
    END IF;
    RETURN false;
EXCEPTION
    WHEN SQLSTATE 'IT000' OR serialization_failure THEN RETURN false;
    WHEN lock_not_available THEN RETURN true;
END
$$;
COMMENT ON FUNCTION inturn.is_append_open IS 'Internal: whether an open transaction has appended this number of a key.';

-- functions/explain_append.sql
-- Explains a key whose next command is being appended by a transaction that is still open. Internal to why. Takes no locks.
--
-- sessions: from session_facts, of which one is the caller. waiting: how many other callers wait for it.
-- next_seq: NULL when it may be another command, of a key whose callers number.
CREATE OR REPLACE FUNCTION inturn.explain_append(sessions jsonb, waiting bigint, next_seq bigint)
RETURNS TABLE (cause text, since timestamptz, says text, to_do text, details jsonb)
LANGUAGE sql STABLE
AS $$
SELECT 'appending', (sessions->0->>'since')::timestamptz,
    format('%s is being appended by a transaction that is still open: %s',
           coalesce('Its next command, ' || next_seq || ',', 'A command of it'), inturn.name_sessions(sessions))
    || CASE waiting WHEN 0 THEN '' WHEN 1 THEN '. 1 more caller waits behind it'
                    ELSE format('. %s more callers wait behind it, one behind the other', waiting) END,
    CASE jsonb_array_length(sessions)
        WHEN 0 THEN 'psql "$INTURN_DSN" -c "SELECT * FROM pg_prepared_xacts"'
        ELSE format('psql "$INTURN_DSN" -c "SELECT pg_terminate_backend(%s)"  # if it will never commit',
                    CASE jsonb_array_length(sessions) WHEN 1 THEN sessions->0->>'backend' ELSE 'BACKEND' END) END,
    jsonb_build_object('sessions', sessions, 'waiting', waiting, 'next_seq', next_seq)
$$;
COMMENT ON FUNCTION inturn.explain_append IS 'Internal to why: explains a key whose next command is being appended.';

-- functions/explain_appending.sql
-- Explains a key whose row in key_sequence a caller's open transaction has locked. Internal to why.
--
-- Where callers number, they may append any number: it is looked which. Locks what is_append_open does, for a moment.
CREATE FUNCTION inturn.explain_appending(c inturn.key_cursor, numbering text)
RETURNS TABLE (cause text, since timestamptz, says text, to_do text, details jsonb)
LANGUAGE sql VOLATILE
AS $$
SELECT e.* FROM inturn.key_sequence s
CROSS JOIN LATERAL inturn.explain_append(
    inturn.session_facts(inturn.row_holders(s.xmax, 'inturn.key_sequence')),
    -- All that wait for a row stand in its queue, the lock on its place.
    (SELECT count(DISTINCT l.pid) FROM pg_locks l
     WHERE l.locktype = 'tuple' AND l.relation = s.tableoid
       AND (l.page, l.tuple) = ((s.ctid::text::point)[0], (s.ctid::text::point)[1])),
    CASE WHEN numbering = 'assigned' OR inturn.is_append_open(c.topic, c.key, c.applied_seq + 1) THEN c.applied_seq + 1 END) e
WHERE s.topic = c.topic AND s.key = c.key
$$;
COMMENT ON FUNCTION inturn.explain_appending IS 'Internal to why: explains a key that a caller''s open transaction has locked.';

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
        RETURN QUERY SELECT * FROM inturn.explain_append(coalesce(sessions, '[]'), 0, (
            SELECT 1 WHERE NOT EXISTS (SELECT FROM inturn.topic t WHERE t.name = explain_unknown.topic AND t.numbering = 'given')));
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

-- functions/find_later.sql
-- Returns what a key has beyond a missing next number: the first and the last one there, how many, and when the first of
-- them came; later is 0 where callers do not number, the next one is there, or nothing is. Internal. Takes no locks.
CREATE FUNCTION inturn.find_later(
    c inturn.key_cursor, OUT first_seq bigint, OUT last_seq bigint, OUT later bigint, OUT first_at timestamptz
)
LANGUAGE sql STABLE
SET enable_seqscan = off
AS $$
SELECT min(l.seq), max(l.seq), count(*), min(l.created_at) FROM inturn.command_log l
WHERE l.topic = c.topic AND l.key = c.key AND l.seq > c.applied_seq + 1
  AND EXISTS (SELECT FROM inturn.topic t WHERE t.name = c.topic AND t.numbering = 'given')
  AND NOT EXISTS (SELECT FROM inturn.command_log n WHERE n.topic = c.topic AND n.key = c.key AND n.seq = c.applied_seq + 1)
$$;
COMMENT ON FUNCTION inturn.find_later IS 'Internal: what a key has beyond a missing next number.';

-- functions/explain_gap.sql
-- Explains a key whose next number is missing while later ones are there: it waits for it, or is held because it waited
-- too long; or the missing one is being appended. Nothing of a key that waits for no number. Internal to why.
--
-- locked: its row in key_sequence is. Locks what explain_appending does, for a moment.
CREATE FUNCTION inturn.explain_gap(c inturn.key_cursor, t inturn.topic, locked boolean)
RETURNS TABLE (cause text, since timestamptz, says text, to_do text, details jsonb)
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    gap record;
    seq constant bigint := c.applied_seq + 1;
    missing text;
    there text;
    open record;
    sessions jsonb;
    to_end text;
BEGIN
    SELECT * INTO gap FROM inturn.find_later(c);
    IF gap.later = 0 THEN
        RETURN;
    ELSIF locked THEN
        SELECT * INTO open FROM inturn.explain_appending(c, t.numbering);
        IF open.details ->> 'next_seq' IS NOT NULL THEN
            RETURN QUERY SELECT open.cause, open.since, open.says, open.to_do, open.details;
            RETURN;
        END IF;
        sessions := open.details -> 'sessions';
        to_end := open.to_do;
    END IF;
    missing := CASE WHEN gap.first_seq = seq + 1 THEN format('command %s', seq)
                    ELSE format('commands %s to %s', seq, gap.first_seq - 1) END;
    there := CASE gap.later WHEN 1 THEN format('1 later one is there, %s', gap.last_seq)
                            ELSE format('%s later ones are there, %s to %s', gap.later, gap.first_seq, gap.last_seq) END;
    RETURN QUERY SELECT CASE WHEN c.held_at IS NULL THEN 'waiting' ELSE 'held' END,
        coalesce(c.held_at, c.waiting_at, gap.first_at),
        format(CASE WHEN c.held_at IS NULL THEN 'It waits for %s, which nobody has appended. %s'
                    ELSE 'It waited for %s, which nobody appended, for longer than the topic''s gap_timeout, %3$s. %2$s' END,
               missing, there, t.gap_timeout)
        || CASE WHEN c.held_at IS NULL AND c.waiting_at + t.gap_timeout > clock_timestamp()
                THEN to_char((c.waiting_at + t.gap_timeout) AT TIME ZONE 'UTC', '. "It is held at" YYYY-MM-DD HH24:MI:SS "UTC if that does not come"')
                ELSE '' END
        -- One of those that wait behind it may have the missing number.
        || coalesce('. Callers have to wait for an open transaction of another command: '
                    || inturn.name_sessions(sessions), ''),
        concat_ws(E'\n',
            CASE WHEN c.held_at IS NOT NULL THEN format('inturn retry --topic {topic} {key}  # to wait for %s once more', seq) END,
            to_end,
            format('inturn fill-gap --topic {topic} --seq %s --reason TEXT {key}  # to go on without it', seq)),
        jsonb_build_object('seq', seq, 'until_seq', gap.first_seq - 1, 'later', gap.later, 'last_seq', gap.last_seq,
                           'waiting_at', c.waiting_at, 'held_from', c.waiting_at + t.gap_timeout, 'error', c.last_error,
                           'sessions', coalesce(sessions, '[]'));
END
$$;
COMMENT ON FUNCTION inturn.explain_gap IS 'Internal to why: explains a key whose next number is missing.';

-- functions/describe_lease.sql
-- Says who has a key by lease: the applier, and where it runs as far as it said so; NULL for a key that nobody has.
-- Internal. Takes no locks.
CREATE FUNCTION inturn.describe_lease(c inturn.key_cursor) RETURNS text
LANGUAGE sql VOLATILE
AS $$
SELECT c.claimed_by || coalesce((SELECT format(' (host %s, pid %s)', p.host, p.pid) FROM inturn.applier p
                                 WHERE p.applier = c.claimed_by AND p.pid IS NOT NULL), '')
$$;
COMMENT ON FUNCTION inturn.describe_lease IS 'Internal: who has a key by lease.';

-- functions/explain_lease.sql
-- Explains a key that an applier has by lease, while that runs; nothing of any other. Internal to why. Takes no locks.
--
-- next: the key's next command; its seq is NULL when nothing is pending.
CREATE FUNCTION inturn.explain_lease(c inturn.key_cursor, t inturn.topic, next inturn.command_log)
RETURNS TABLE (cause text, since timestamptz, says text, to_do text, details jsonb)
LANGUAGE sql VOLATILE
AS $$
SELECT 'leased', c.claimed_at,
    format('%s has it by lease until %s, longer if it renews it, and %s%s', inturn.describe_lease(c),
           to_char(c.lease_until AT TIME ZONE 'UTC', 'HH24:MI:SS "UTC"'),
           CASE WHEN next.seq IS NULL THEN 'has recorded every command it can apply'
                ELSE format('is at command %s, attempt %s of %s', inturn.name_command(next), c.attempts + 1, t.max_attempts) END,
           CASE WHEN a.alive IS FALSE
                THEN to_char(a.seen_at AT TIME ZONE 'UTC', '. "That applier is gone: it was last seen at" YYYY-MM-DD HH24:MI:SS "UTC"')
                     || '. Any other takes the key when the lease is over'
                ELSE '' END),
    'inturn status  # what the appliers are doing',
    jsonb_build_object('until', c.lease_until, 'applier', c.claimed_by, 'host', a.host, 'pid', a.pid, 'alive', a.alive,
                       'seen_at', a.seen_at, 'seq', c.applied_seq + 1, 'name', next.name, 'attempt', c.attempts + 1,
                       'max_attempts', t.max_attempts, 'epoch', c.epoch)
FROM (SELECT) one LEFT JOIN inturn.list_appliers() a ON a.applier = c.claimed_by AND a.seen_at IS NOT NULL
WHERE c.lease_until > clock_timestamp()
$$;
COMMENT ON FUNCTION inturn.explain_lease IS 'Internal to why: explains a key that an applier has by lease.';

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
               CASE WHEN c.lease_until > clock_timestamp()
                    THEN format('. %s has it by lease until %s, for the command in hand', inturn.describe_lease(c),
                                to_char(c.lease_until AT TIME ZONE 'UTC', 'HH24:MI:SS "UTC"'))
                    WHEN next.seq IS NULL AND (inturn.find_later(c)).later > 0
                    THEN format('. Its next command, %s, is missing too', c.applied_seq + 1)
                    WHEN next.seq IS NULL THEN '. Nothing is pending on it now' ELSE '' END),
        CASE WHEN whole THEN 'inturn resume --topic {topic}' ELSE 'inturn resume --topic {topic} {key}' END,
        jsonb_build_object('until', last, 'reason', action.reason, 'db_user', action.db_user, 'os_user', action.os_user,
                           'acting_as', action.acting_as);
END
$$;
COMMENT ON FUNCTION inturn.explain_standstill IS 'Internal to why: explains a key that is held or paused.';

-- functions/explain_empty.sql
DROP FUNCTION inturn.explain_empty;
-- Explains a key on which nothing committed is pending: a caller's transaction is open on it, or it is idle.
-- Internal to why. Locks what explain_appending does, for a moment.
--
-- locked: its row in key_sequence is.
CREATE FUNCTION inturn.explain_empty(c inturn.key_cursor, t inturn.topic, locked boolean)
RETURNS TABLE (cause text, since timestamptz, says text, to_do text, details jsonb)
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    last inturn.turn;
BEGIN
    IF locked THEN
        RETURN QUERY SELECT * FROM inturn.explain_appending(c, t.numbering);
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
                 WHEN t.target LIKE 'sql:%' THEN E'inturn apply --topic {topic}\npsql "$INTURN_DSN" -c "CALL inturn.apply()"  # or in SQL, once'
                 ELSE 'inturn apply --topic {topic}' END,
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
    -- What else is to be said of a key that is ready: of its last attempt.
    last constant text := CASE WHEN c.attempts > 0 THEN '. ' || failed ELSE '' END || CASE WHEN c.claimed_by IS NULL THEN '' ELSE
        format('. The lease of %s ran out at %s: the claim that takes the key counts that as a failed attempt, unless it is heard of before',
               inturn.describe_lease(c), to_char(c.lease_until AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"')) END;
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
    SELECT jsonb_agg(to_jsonb(a) ORDER BY a.applier) FILTER (WHERE a.alive AND coalesce(a.revision, v.version_num) = v.version_num)
    INTO serving FROM inturn.list_appliers() a CROSS JOIN inturn.schema_version v WHERE t.name = ANY (a.topics);
    IF serving IS NULL THEN
        RETURN QUERY SELECT u.cause, c.ready_at, u.says || last, u.to_do, u.details
        FROM inturn.explain_unserved(t) u;
    ELSE
        RETURN QUERY SELECT q.cause, c.ready_at, q.says || last, q.to_do, q.details
        FROM inturn.explain_queued(c, serving) q;
    END IF;
END
$$;
COMMENT ON FUNCTION inturn.explain_ready IS 'Internal to why: explains a key that has a next command and is in nobody''s hands.';

-- functions/explain_key.sql
-- Explains why a key does not move: the first of the causes that holds. Internal to why.
-- Locks what find_locks, is_first_append_open and is_append_open do, for a moment.
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
    IF c.held_at IS NOT NULL AND c.waiting_at IS NOT NULL THEN
        -- Not a failure: what it waits for may be on its way.
        RETURN QUERY SELECT * FROM inturn.explain_gap(c, t, locked.on_sequence);
        IF FOUND THEN RETURN; END IF;
    END IF;
    RETURN QUERY SELECT * FROM inturn.explain_standstill(c, t, next);
    IF FOUND THEN RETURN; END IF;
    RETURN QUERY SELECT * FROM inturn.explain_lease(c, t, next);
    IF FOUND THEN RETURN; END IF;
    IF next.seq IS NULL THEN
        RETURN QUERY SELECT * FROM inturn.explain_gap(c, t, locked.on_sequence);
        IF FOUND THEN RETURN; END IF;
        RETURN QUERY SELECT * FROM inturn.explain_empty(c, t, locked.on_sequence);
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
    'waiting_at', c.waiting_at, 'claimed_by', c.claimed_by, 'lease_until', c.lease_until,
    'last_error', c.last_error))
$$;
COMMENT ON FUNCTION inturn.key_facts IS 'Internal to the operators'' functions: where a key stands.';

-- functions/refuse_busy.sql
-- Says who has a key in hand, to an operator who has waited long enough. Internal to lock_cursor. Takes no locks. Raises IT042.
CREATE FUNCTION inturn.refuse_busy(topic text, key text) RETURNS void
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    holder text;
BEGIN
    SELECT coalesce(
        inturn.describe_backend(inturn.row_holder(c.xmax, 'inturn.key_cursor')),
        CASE WHEN c.lease_until > clock_timestamp()
             THEN format('leased by %s until %s', c.claimed_by, to_char(c.lease_until AT TIME ZONE 'UTC', 'HH24:MI:SS "UTC"')) END,
        'nobody any more') INTO holder
    FROM inturn.key_cursor c WHERE c.topic = refuse_busy.topic AND c.key = refuse_busy.key;
    RAISE EXCEPTION USING ERRCODE = 'IT042',
        MESSAGE = format('key %L of topic %L is in other hands: %s', key, topic, holder),
        HINT = format('Nothing was changed. Waited for %s; try again%s.', current_setting('lock_timeout'),
                      CASE WHEN holder LIKE 'leased%' THEN ' when the lease is over'
                           ELSE ', or end that session: SELECT pg_terminate_backend(PID)' END);
END
$$;
COMMENT ON FUNCTION inturn.refuse_busy IS 'Internal to lock_cursor: says who has a key in hand.';

-- functions/lock_cursor.sql
DROP FUNCTION inturn.lock_cursor;
-- Locks a key for an operator, and returns its row in key_cursor. Internal to the operators' functions.
--
-- Waits for the applier that is at work on the key, in its transaction or by lease, for at most lock_timeout (set it: the
-- default is for ever). beside_lease: an applier's lease is no obstacle.
-- Raises IT001, IT040 no such key, IT042 when the wait was too long, with who holds it; IT031 outside READ COMMITTED.
CREATE FUNCTION inturn.lock_cursor(topic text, key text, beside_lease boolean DEFAULT false) RETURNS inturn.key_cursor
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    cursor inturn.key_cursor;
    timeout constant interval := current_setting('lock_timeout')::interval;
    give_up_at constant timestamptz := CASE WHEN timeout > '0' THEN clock_timestamp() + timeout ELSE 'infinity' END;
BEGIN
    PERFORM inturn.require_read_committed();
    LOOP
        BEGIN
            SELECT * INTO cursor FROM inturn.key_cursor c
            WHERE c.topic = lock_cursor.topic AND c.key = lock_cursor.key FOR UPDATE;
            EXIT WHEN beside_lease OR (cursor.lease_until > clock_timestamp()) IS NOT TRUE;
            RAISE EXCEPTION USING ERRCODE = 'IT042'; -- gives the lock back: the applier needs it to go on
        EXCEPTION WHEN lock_not_available OR SQLSTATE 'IT042' THEN
            IF SQLSTATE = '55P03' OR clock_timestamp() >= give_up_at THEN
                PERFORM inturn.refuse_busy(topic, key);
            END IF;
            PERFORM pg_sleep(0.02); -- nothing else tells when a lease ends
        END;
    END LOOP;
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

-- functions/lock_callers.sql
-- Keeps the callers of a key out until the end of the transaction, for an operator. Internal.
--
-- Waits for the callers whose transactions are open on the key, for at most lock_timeout. Locks its row in key_sequence.
-- Raises IT042 when the wait was too long, with who holds it.
CREATE FUNCTION inturn.lock_callers(topic text, key text) RETURNS void
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
BEGIN
    PERFORM FROM inturn.key_sequence s WHERE s.topic = lock_callers.topic AND s.key = lock_callers.key FOR UPDATE;
EXCEPTION WHEN lock_not_available THEN
    RAISE EXCEPTION USING ERRCODE = 'IT042',
        MESSAGE = format('key %L of topic %L is being appended to: %s', key, topic, coalesce((
            SELECT inturn.describe_backend(inturn.row_holder(s.xmax, 'inturn.key_sequence')) FROM inturn.key_sequence s
            WHERE s.topic = lock_callers.topic AND s.key = lock_callers.key), 'by nobody any more')),
        HINT = format('Nothing was changed. Waited for %s; try again, or end that session: SELECT pg_terminate_backend(PID).',
                      current_setting('lock_timeout'));
END
$$;
COMMENT ON FUNCTION inturn.lock_callers IS 'Internal to the operators'' functions: keeps the callers of a key out.';

-- functions/settle_key.sql
-- Lets a key whose cursor was moved go idle, be ready, or stay paused; returns its row. Internal to release, the claims by
-- lease and the operators' functions.
--
-- A lease that runs goes on: the key does not go idle under it, and is ready when it is over. After an empty turn the key
-- is ready a little later, as finish has it.
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
    SELECT drained AND (c.lease_until > clock_timestamp()) IS NOT TRUE AND NOT EXISTS (
        SELECT FROM inturn.command_log l
        WHERE l.topic = settle_key.topic AND l.key = settle_key.key AND l.seq = c.applied_seq + 1) INTO drained
    FROM inturn.key_cursor c WHERE c.topic = settle_key.topic AND c.key = settle_key.key;
    UPDATE inturn.key_cursor c SET
        ready_at = CASE WHEN drained THEN NULL
                        WHEN c.paused_at IS NULL OR c.paused_until IS NOT NULL THEN greatest(
                            clock_timestamp() + CASE WHEN c.empty_turns > 0
                                THEN least(power(2, least(c.empty_turns - 1, 10)), 100) ELSE 0 END * interval '1 ms',
                            c.paused_until, c.lease_until) END
    WHERE c.topic = settle_key.topic AND c.key = settle_key.key RETURNING * INTO cursor;
    IF drained THEN
        UPDATE inturn.key_sequence s SET drained_seq = cursor.applied_seq
        WHERE s.topic = settle_key.topic AND s.key = settle_key.key;
        PERFORM inturn.find_gap(t.name, settle_key.key) FROM inturn.topic t
        WHERE t.name = settle_key.topic AND t.numbering = 'given';
        SELECT * INTO cursor FROM inturn.key_cursor c WHERE c.topic = settle_key.topic AND c.key = settle_key.key;
    ELSIF cursor.empty_turns = 0 THEN
        PERFORM inturn.notify_appliers(topic);
    END IF;
    RETURN cursor;
END
$$;
COMMENT ON FUNCTION inturn.settle_key IS 'Internal: lets a key go idle, be ready, or stay paused.';

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
        last_error = NULL, failed_at = NULL, held_at = NULL, waiting_at = NULL,
        claimed_by = NULL, claimed_at = NULL, lease_until = NULL
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
    UPDATE inturn.key_cursor c SET held_at = NULL, ready_at = clock_timestamp(), attempts = 0, waiting_at = NULL
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
    was constant inturn.key_cursor := inturn.lock_cursor(topic, key, beside_lease => true);
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
-- Raises IT041 when seq is pending, not there, or was replayed before, or callers number; IT043 without a reason; and what append raises.
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
    IF EXISTS (SELECT FROM inturn.topic t WHERE t.name = replay.topic AND t.numbering = 'given') THEN
        PERFORM inturn.refuse_action(topic, key, 'has its numbers from its callers, and a replay would need one of theirs',
            'Have the caller append the command again, under its next number.');
    END IF;
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
    -- Whoever let a lease run out has read it as it was: what they report is not taken any more.
    UPDATE inturn.key_cursor c SET epoch = c.epoch + 1, claimed_by = NULL, claimed_at = NULL, lease_until = NULL
    WHERE c.topic = amend.topic AND c.key = amend.key AND c.claimed_by IS NOT NULL;
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
    was constant inturn.key_cursor := inturn.lock_cursor(topic, key, beside_lease => true);
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
            -- Where callers number: an append beside a claim counts on the key's being ready, and a gap may time out.
            OR c.ready_at IS NOT NULL OR c.waiting_at IS NOT NULL
            -- A lease goes on for the command in hand (see advance), and nobody else has the key before it is over.
            THEN greatest(until, CASE WHEN until IS NOT NULL THEN c.lease_until END) END
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
    was constant inturn.key_cursor := inturn.lock_cursor(topic, key, beside_lease => true);
BEGIN
    IF inturn.key_state(was) <> 'paused' THEN
        PERFORM inturn.refuse_action(topic, key, format('is %s, not paused', inturn.key_state(was)),
            CASE WHEN was.held_at IS NOT NULL THEN 'Retry it, or skip the command that failed.' ELSE 'There is nothing to resume.' END);
    END IF;
    UPDATE inturn.key_cursor c SET paused_at = NULL, paused_until = NULL, empty_turns = 0
    WHERE c.topic = resume.topic AND c.key = resume.key;
    RETURN inturn.record_action(topic, key, NULL, 'resume', reason, inturn.key_facts(was),
                                inturn.key_facts(inturn.settle_key(topic, key)));
END
$$;
COMMENT ON FUNCTION inturn.resume IS 'Lets a paused key go on where it stood.';

-- functions/fill_gap.sql
-- Passes over a number that a key waits for and that nobody has appended; returns the recorded action.
--
-- It has an entry in skip and no command; its late append is refused.
-- Locks, in this order: the key's row in key_sequence, waiting for its callers; its row in key_cursor (see lock_cursor).
-- Raises IT041 when the key does not wait for seq, IT043 without a reason, and what lock_cursor raises.
CREATE FUNCTION inturn.fill_gap(topic text, key text, seq bigint, reason text) RETURNS inturn.operator_action
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    waits boolean;
    was inturn.key_cursor;
BEGIN
    PERFORM inturn.require_reason('fill_gap', reason);
    SELECT c.waiting_at IS NOT NULL INTO waits FROM inturn.key_cursor c
    WHERE c.topic = fill_gap.topic AND c.key = fill_gap.key;
    IF waits THEN
        -- The append of the missing number may be open at this moment. Only for a key that waits: one at work, its callers
        -- would wait for the applier.
        PERFORM inturn.lock_callers(topic, key);
    END IF;
    was := inturn.lock_cursor(topic, key, beside_lease => true);
    IF EXISTS (SELECT FROM inturn.command_log l
               WHERE l.topic = fill_gap.topic AND l.key = fill_gap.key AND l.seq = fill_gap.seq) THEN
        PERFORM inturn.refuse_action(topic, key, format('has command %s: it is no gap', seq), 'To pass over a command: skip.');
    ELSIF waits IS NOT TRUE OR was.waiting_at IS NULL OR seq IS DISTINCT FROM was.applied_seq + 1 THEN
        PERFORM inturn.refuse_action(topic, key, CASE WHEN waits IS NOT TRUE OR was.waiting_at IS NULL THEN 'waits for no number'
            ELSE format('waits for %s, not %s', was.applied_seq + 1, seq) END, 'Look again with inturn why.');
    END IF;
    INSERT INTO inturn.skip (topic, key, seq, epoch, skipped_by, reason)
    VALUES (fill_gap.topic, fill_gap.key, fill_gap.seq, was.epoch + 1, 'operator', fill_gap.reason);
    RETURN inturn.record_action(topic, key, seq, 'fill-gap', reason, inturn.key_facts(was),
                                inturn.key_facts(inturn.move_past(topic, key, seq)));
END
$$;
COMMENT ON FUNCTION inturn.fill_gap IS 'Passes over a number that a key waits for and that nobody has appended.';

-- functions/set_topic.sql
DROP FUNCTION inturn.set_topic;
-- Changes settings of a topic; returns the recorded action. Appliers that run follow within seconds.
--
-- NULL leaves a setting as it is; a gap_timeout of 0 takes it away. Who numbers the commands is settled for ever.
-- Locks: the topic's row.
-- Raises IT041 when nothing would change, what check_topic raises, and what lock_topic raises.
CREATE FUNCTION inturn.set_topic(
    topic text, reason text DEFAULT NULL, target text DEFAULT NULL, max_attempts integer DEFAULT NULL,
    backoff_base interval DEFAULT NULL, backoff_cap interval DEFAULT NULL,
    max_payload_bytes integer DEFAULT NULL, batch_commands integer DEFAULT NULL, on_exhausted text DEFAULT NULL,
    max_ahead bigint DEFAULT NULL, gap_timeout interval DEFAULT NULL, lease interval DEFAULT NULL,
    max_in_flight integer DEFAULT NULL
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
    settings.max_ahead := coalesce(max_ahead, was.max_ahead);
    settings.gap_timeout := nullif(coalesce(gap_timeout, was.gap_timeout), '0');
    settings.lease := coalesce(lease, was.lease);
    settings.max_in_flight := coalesce(max_in_flight, was.max_in_flight);
    IF settings = was THEN
        PERFORM inturn.refuse_action(topic, '', 'has these settings already', 'Nothing was changed.');
    END IF;
    PERFORM inturn.check_topic(settings);
    UPDATE inturn.topic t SET
        (target, max_attempts, backoff_base, backoff_cap, max_payload_bytes, batch_commands, on_exhausted,
         max_ahead, gap_timeout, lease, max_in_flight)
        = (settings.target, settings.max_attempts, settings.backoff_base, settings.backoff_cap, settings.max_payload_bytes,
           settings.batch_commands, settings.on_exhausted,
           settings.max_ahead, settings.gap_timeout, settings.lease, settings.max_in_flight)
    WHERE t.name = set_topic.topic;
    RETURN inturn.record_action(topic, '', NULL, 'set', reason, to_jsonb(was), to_jsonb(settings));
END
$$;
COMMENT ON FUNCTION inturn.set_topic IS 'Changes settings of a topic.';

-- functions/lease_end.sql
-- Returns when a lease that begins, or is renewed, now runs out. Internal to claim, advance and renew. Takes no locks.
--
-- lease: its length; NULL for the topic's own. Raises 22023 when it is not over 0 and up to a day, as a topic's is.
CREATE FUNCTION inturn.lease_end(settings inturn.topic, lease interval) RETURNS timestamptz
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    IF lease <= '0' OR lease > '1 day' THEN
        RAISE EXCEPTION USING ERRCODE = '22023',
            MESSAGE = format('lease is %s; over 0 and up to 1 day are allowed', lease),
            HINT = format('Leave it out for that of topic %L, %s. To end a lease: release.', settings.name, settings.lease);
    END IF;
    RETURN clock_timestamp() + coalesce(lease, settings.lease);
END
$$;
COMMENT ON FUNCTION inturn.lease_end IS 'Internal: when a lease that begins or is renewed now runs out.';

-- functions/begin_lease.sql
-- Starts a lease on a key that this transaction has claimed, and returns its row; NULL when there is nothing to do on it.
-- Internal to claim.
--
-- A lease that ran out on the key counts as a failed attempt of its next command: one that kills every applier is held
-- at last, as any other. Without a command to apply the claim is an empty turn, and ends here: not by finish, which does
-- not know a claim that a client has made under a savepoint.
-- Locks what settle_key locks. Raises what lease_end raises.
CREATE FUNCTION inturn.begin_lease(
    settings inturn.topic, key text, applied_seq bigint, epoch bigint, lease interval, applier text
) RETURNS inturn.key_cursor
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    was inturn.key_cursor;
    leased inturn.key_cursor;
    until constant timestamptz := inturn.lease_end(settings, lease);
BEGIN
    IF NOT EXISTS (SELECT FROM inturn.next_commands(settings.name, begin_lease.key, begin_lease.applied_seq, 1)) THEN
        UPDATE inturn.key_cursor c SET
            attempts = 0, last_error = NULL, failed_at = NULL, paused_at = NULL, paused_until = NULL,
            claimed_by = NULL, claimed_at = NULL, lease_until = NULL, empty_turns = c.empty_turns + 1
        WHERE c.topic = settings.name AND c.key = begin_lease.key;
        PERFORM inturn.settle_key(settings.name, begin_lease.key);
        RETURN NULL;
    END IF;
    SELECT * INTO was FROM inturn.key_cursor c WHERE c.topic = settings.name AND c.key = begin_lease.key;
    IF was.claimed_by IS NOT NULL AND inturn.record_failure(
        was, was.epoch, was.applied_seq + 1, was.applied_seq + 1, was.attempts + 1,
        format('the lease of %s ran out at %s before the command was recorded', was.claimed_by,
               to_char(was.lease_until AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"')),
        was.claimed_by, was.claimed_at, NULL, '0') <> 'retrying' THEN
        RETURN NULL;
    END IF;
    UPDATE inturn.key_cursor c SET
        epoch = begin_lease.epoch, claimed_by = begin_lease.applier, claimed_at = clock_timestamp(),
        lease_until = until, ready_at = until,
        empty_turns = 0, paused_at = NULL, paused_until = NULL, waiting_at = NULL
    WHERE c.topic = settings.name AND c.key = begin_lease.key RETURNING * INTO leased;
    RETURN leased;
END
$$;
COMMENT ON FUNCTION inturn.begin_lease IS 'Internal to claim: starts a lease on a key.';

-- functions/claim_lease.sql
-- Claims ready keys of some topics by lease, in the order of the topics, and returns their next commands in order.
--
-- For work outside the database: commit at once, do a key's commands one after the other, report each with advance (or
-- fail), and release the key at the end; renew while a command takes long. Whoever has the key when the lease is over
-- is fenced off by the next epoch, which any applier's claim takes.
-- lease: NULL for each topic's own. applier: who asks, as in turn; NULL for this session. Neither has a default: no call
-- with fewer parameters can mean both this claim and the other.
-- A key comes with at most the topic's batch_commands; one whose next command has failed before, with that alone.
-- Locks the rows in key_cursor, skipping locked ones. Raises IT001, IT031 outside READ COMMITTED, 22023 for a max_keys or
-- a lease that cannot be.
CREATE FUNCTION inturn.claim(topics text[], max_keys integer, lease interval, applier text)
RETURNS TABLE (
    topic text, key text, epoch bigint, attempt integer, lease_until timestamptz,
    seq bigint, name text, payload jsonb, created_at timestamptz
)
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
#variable_conflict use_column
DECLARE
    served text;
    settings inturn.topic;
    claimed record;
    taken integer := 0;
    leased inturn.key_cursor;
BEGIN
    PERFORM inturn.require_read_committed();
    IF (max_keys >= 0) IS NOT TRUE THEN
        RAISE EXCEPTION USING ERRCODE = '22023',
            MESSAGE = format('max_keys is %s; 0 or more are allowed', coalesce(max_keys::text, 'NULL')),
            HINT = 'Give how many keys the applier can work on now.';
    END IF;
    FOREACH served IN ARRAY topics LOOP
        EXIT WHEN taken >= max_keys;
        SELECT * INTO settings FROM inturn.topic t WHERE t.name = served;
        IF NOT FOUND THEN
            PERFORM inturn.refuse_topic(served);
        END IF;
        FOR claimed IN SELECT * FROM inturn.claim(served, '-infinity', max_keys - taken) LOOP
            taken := taken + 1;
            leased := inturn.begin_lease(settings, claimed.key, claimed.applied_seq, claimed.epoch,
                                         claim.lease, coalesce(claim.applier, 'sql:' || pg_backend_pid()));
            CONTINUE WHEN leased.key IS NULL;
            RETURN QUERY
            SELECT leased.topic, leased.key, leased.epoch, leased.attempts + 1, leased.lease_until,
                   l.seq, l.name, l.payload, l.created_at
            FROM inturn.next_commands(served, leased.key, leased.applied_seq,
                                      CASE WHEN leased.attempts > 0 THEN 1 ELSE settings.batch_commands END) l;
        END LOOP;
    END LOOP;
END
$$;
COMMENT ON FUNCTION inturn.claim(text[], integer, interval, text) IS 'Claims ready keys by lease, for work outside the database, and returns their next commands.';

-- functions/hold_lease.sql
-- Locks a key for the holder of its lease, and returns its row. Internal to advance, renew, release and fail.
--
-- The epoch alone decides: over or not, a lease counts until another claim takes the next epoch. Locks the row in key_cursor.
-- Raises IT030 when the lease is gone; IT031 outside READ COMMITTED.
CREATE FUNCTION inturn.hold_lease(topic text, key text, epoch bigint) RETURNS inturn.key_cursor
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    held inturn.key_cursor;
BEGIN
    PERFORM inturn.require_read_committed();
    SELECT * INTO held FROM inturn.key_cursor c
    WHERE c.topic = hold_lease.topic AND c.key = hold_lease.key AND c.epoch = hold_lease.epoch AND c.claimed_by IS NOT NULL
    FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'IT030',
            MESSAGE = format('turn %s of key %L of topic %L was fenced off: its lease is gone', epoch, key, topic),
            HINT = 'Stop work on the key at once: another applier may have it.';
    END IF;
    RETURN held;
END
$$;
COMMENT ON FUNCTION inturn.hold_lease IS 'Internal: locks a key for the holder of its lease.';

-- functions/release.sql
-- Ends a lease after the last recorded command: the key goes idle, or to the back of the queue.
--
-- Locks, in this order: the row in key_cursor; the row in key_sequence, if no caller holds it. Raises what hold_lease raises.
CREATE FUNCTION inturn.release(topic text, key text, epoch bigint) RETURNS void
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
BEGIN
    PERFORM inturn.hold_lease(topic, key, epoch);
    UPDATE inturn.key_cursor c SET claimed_by = NULL, claimed_at = NULL, lease_until = NULL
    WHERE c.topic = release.topic AND c.key = release.key;
    PERFORM inturn.settle_key(topic, key);
END
$$;
COMMENT ON FUNCTION inturn.release IS 'Ends a lease after the last recorded command.';

-- functions/advance.sql
-- Records that the next command of a leased key took effect; returns until when the lease runs now, or NULL when the key
-- has to be let go: it, or its topic, was paused, and the lease has been ended with this command.
--
-- seq: the command; the last one again changes nothing. The lease is renewed when less than half of it is left.
-- lease: its length; NULL for the topic's own.
-- Locks the row in key_cursor; what release locks. Raises IT032 when seq is not the next, and what hold_lease and
-- lease_end raise.
CREATE FUNCTION inturn.advance(topic text, key text, epoch bigint, seq bigint, lease interval DEFAULT NULL)
RETURNS timestamptz
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    was constant inturn.key_cursor := inturn.hold_lease(topic, key, epoch);
    settings inturn.topic;
    until timestamptz := was.lease_until;
    fresh timestamptz;
BEGIN
    SELECT * INTO settings FROM inturn.topic t WHERE t.name = advance.topic;
    IF seq IS DISTINCT FROM was.applied_seq AND (seq IS DISTINCT FROM was.applied_seq + 1 OR NOT EXISTS (
        SELECT FROM inturn.next_commands(topic, key, was.applied_seq, 1))) THEN
        RAISE EXCEPTION USING ERRCODE = 'IT032',
            MESSAGE = format('command %s of key %L of topic %L is not the next: that is %s', coalesce(seq::text, 'NULL'), key, topic, was.applied_seq + 1),
            HINT = 'Report the commands of a key one by one, in order, each once it took effect.';
    END IF;
    fresh := inturn.lease_end(settings, lease);
    IF until < fresh - coalesce(lease, settings.lease) / 2 THEN
        until := fresh;
    END IF;
    UPDATE inturn.key_cursor c SET
        applied_seq = advance.seq,
        attempts = CASE WHEN seq = was.applied_seq THEN c.attempts ELSE 0 END,
        last_error = CASE WHEN seq = was.applied_seq THEN c.last_error END,
        failed_at = CASE WHEN seq = was.applied_seq THEN c.failed_at END,
        lease_until = until,
        ready_at = CASE WHEN c.paused_at IS NULL OR c.paused_until IS NOT NULL THEN greatest(until, c.paused_until) END
    WHERE c.topic = advance.topic AND c.key = advance.key;
    IF seq > was.applied_seq THEN
        INSERT INTO inturn.turn AS t (topic, key, epoch, from_seq, to_seq, outcome, applier, started_at)
        VALUES (advance.topic, advance.key, advance.epoch, advance.seq, advance.seq, 'applied', was.claimed_by, was.claimed_at)
        ON CONFLICT ON CONSTRAINT turn_pkey DO UPDATE SET to_seq = EXCLUDED.to_seq, finished_at = EXCLUDED.finished_at;
    END IF;
    IF was.paused_at IS NOT NULL AND clock_timestamp() < coalesce(was.paused_until, 'infinity')
        OR settings.paused_at IS NOT NULL AND clock_timestamp() < coalesce(settings.paused_until, 'infinity') THEN
        PERFORM inturn.release(topic, key, epoch);
        RETURN NULL;
    END IF;
    RETURN until;
END
$$;
COMMENT ON FUNCTION inturn.advance IS 'Records that the next command of a leased key took effect, and renews the lease.';

-- functions/renew.sql
-- Renews a lease while a command is at work; returns until when it runs now.
--
-- lease: its length from now; NULL for the topic's own. Locks the row in key_cursor. Raises what hold_lease and
-- lease_end raise.
CREATE FUNCTION inturn.renew(topic text, key text, epoch bigint, lease interval DEFAULT NULL) RETURNS timestamptz
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    until timestamptz;
BEGIN
    PERFORM inturn.hold_lease(topic, key, epoch);
    SELECT inturn.lease_end(t, renew.lease) INTO until FROM inturn.topic t WHERE t.name = renew.topic;
    -- A pause ends the lease with the command in hand, not before.
    UPDATE inturn.key_cursor c SET
        lease_until = until,
        ready_at = CASE WHEN c.paused_at IS NULL OR c.paused_until IS NOT NULL THEN greatest(until, c.paused_until) END
    WHERE c.topic = renew.topic AND c.key = renew.key;
    RETURN until;
END
$$;
COMMENT ON FUNCTION inturn.renew IS 'Renews a lease while a command is at work.';

-- functions/fail_lease.sql
-- Ends a lease whose next command failed: records the error, and what becomes of the key; see the other fail.
--
-- seq: the command. asks: what was asked for, {"verdict": "retry", "retry_after": "30 seconds"}, or hold, or skip; NULL:
-- nothing. Returns the outcome. It takes fewer parameters than the other, so no call can mean both.
-- Locks the row in key_cursor. Raises IT032 when seq is not the next, and what hold_lease raises.
CREATE FUNCTION inturn.fail(
    topic text, key text, epoch bigint, seq bigint, error text, asks jsonb DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    was constant inturn.key_cursor := inturn.hold_lease(topic, key, epoch);
BEGIN
    IF seq IS DISTINCT FROM was.applied_seq + 1 THEN
        RAISE EXCEPTION USING ERRCODE = 'IT032',
            MESSAGE = format('command %s of key %L of topic %L is not the next: that is %s', coalesce(seq::text, 'NULL'), key, topic, was.applied_seq + 1),
            HINT = 'Report the commands of a key one by one, in order.';
    END IF;
    RETURN inturn.record_failure(was, epoch, seq, seq, was.attempts + 1, error, was.claimed_by, was.claimed_at,
                                 asks ->> 'verdict', (asks ->> 'retry_after')::interval);
END
$$;
COMMENT ON FUNCTION inturn.fail(text, text, bigint, bigint, text, jsonb) IS 'Ends a lease whose next command failed: records the error, and what becomes of the key.';

-- functions/record_progress.sql
-- Records the progress of many leases in one transaction; returns what became of each. Internal to the applier for outside work.
--
-- The arrays run in parallel, an element a lease. seq: the command that took effect; NULL: none, the lease is renewed.
-- release: end the lease then. outcome: kept; let go, the lease has ended; fenced, it is another's and nothing was changed.
-- seconds: how long a kept lease runs from now.
-- Locks the rows in key_cursor in byte order, so that two appliers that differ on who has a lease do not deadlock; what
-- release locks. Raises IT032 when a seq is not the next.
CREATE FUNCTION inturn.record_progress(topics text[], keys text[], epochs bigint[], seqs bigint[], releases boolean[])
RETURNS TABLE (place bigint, outcome text, seconds double precision)
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    step record;
    until timestamptz;
BEGIN
    FOR step IN
        SELECT t.* FROM unnest(topics, keys, epochs, seqs, releases) WITH ORDINALITY t (topic, key, epoch, seq, release, place)
        ORDER BY t.topic COLLATE "C", t.key COLLATE "C", t.place
    LOOP
        place := step.place;
        outcome := 'kept';
        seconds := NULL;
        PERFORM FROM inturn.key_cursor c
        WHERE c.topic = step.topic AND c.key = step.key AND c.epoch = step.epoch AND c.claimed_by IS NOT NULL FOR UPDATE;
        -- Asked, not caught: each exception caught would be a subtransaction.
        IF NOT FOUND THEN
            outcome := 'fenced';
        ELSE
            IF step.seq IS NOT NULL THEN
                until := inturn.advance(step.topic, step.key, step.epoch, step.seq);
            ELSIF NOT step.release THEN
                until := inturn.renew(step.topic, step.key, step.epoch);
            ELSE
                until := clock_timestamp();
            END IF;
            IF until IS NOT NULL AND step.release THEN
                PERFORM inturn.release(step.topic, step.key, step.epoch);
                until := NULL;
            END IF;
            IF until IS NULL THEN
                outcome := 'let go';
            ELSE
                seconds := extract(epoch FROM until - clock_timestamp());
            END IF;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION inturn.record_progress IS 'Internal to the applier for outside work: records the progress of many leases.';

-- grants.sql
-- Every privilege, in one place. Nothing here is granted to PUBLIC.
REVOKE ALL ON SCHEMA inturn FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA inturn FROM PUBLIC;
REVOKE ALL ON ALL ROUTINES IN SCHEMA inturn FROM PUBLIC;

GRANT USAGE ON SCHEMA inturn TO inturn_caller, inturn_applier, inturn_operator;
GRANT SELECT ON inturn.schema_version TO inturn_caller, inturn_applier, inturn_operator;

-- A caller appends and nothing more. The view reads as empty; RETURNING needs the SELECT.
GRANT EXECUTE ON FUNCTION
    inturn.append(text, text, text, jsonb, text, bigint),
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
    inturn.record_failure(inturn.key_cursor, bigint, bigint, bigint, integer, text, text, timestamptz, text, interval),
    inturn.pass_over(text, text, bigint, bigint, bigint, text, text),
    inturn.next_commands(text, text, bigint, integer),
    inturn.find_gap(text, text),
    inturn.settle_key(text, text),
    inturn.notify_appliers(text),
    inturn.lease_end(inturn.topic, interval),
    inturn.begin_lease(inturn.topic, text, bigint, bigint, interval, text),
    inturn.hold_lease(text, text, bigint),
    inturn.claim(text[], integer, interval, text),
    inturn.advance(text, text, bigint, bigint, interval),
    inturn.renew(text, text, bigint, interval),
    inturn.release(text, text, bigint),
    inturn.fail(text, text, bigint, bigint, text, jsonb),
    inturn.record_progress(text[], text[], bigint[], bigint[], boolean[]),
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
GRANT SELECT, INSERT, UPDATE ON inturn.turn TO inturn_applier;
GRANT SELECT, INSERT ON inturn.skip TO inturn_applier;
GRANT SELECT, INSERT, UPDATE, DELETE ON inturn.applier TO inturn_applier;

-- An operator reads everything, creates topics, and puts right by functions that run as their owner and record who did it.
GRANT SELECT ON ALL TABLES IN SCHEMA inturn TO inturn_operator;
GRANT INSERT ON inturn.topic TO inturn_operator;
GRANT EXECUTE ON FUNCTION
    inturn.create_topic(text, text, integer, interval, interval, integer, integer, text,
                        text, bigint, bigint, interval, interval, integer),
    inturn.check_topic(inturn.topic),
    inturn.target_function(text, text),
    inturn.keys_query(text, text, boolean),
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
    inturn.fill_gap(text, text, bigint, text),
    inturn.pause_topic(text, text, timestamptz),
    inturn.resume_topic(text, text),
    inturn.set_topic(text, text, text, integer, interval, interval, integer, integer, text, bigint, interval, interval, integer)
TO inturn_operator;
