-- roles.sql
-- Three sibling roles, none of which inherits from another: a login is granted the one it needs.
-- Roles belong to the whole cluster: where they exist already (another database, a DBA who made them) they are kept.
DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['inturn_caller', 'inturn_applier', 'inturn_operator'] LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = role) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL; -- made by an install into another database at this moment
            END;
        END IF;
    END LOOP;
END
$$;

-- tables/topic.sql
-- What kinds of command there are, and what applies each. Read by every append and every claim,
-- so nothing that changes often may live here.
CREATE TABLE inturn.topic (
    name text COLLATE "C" PRIMARY KEY
        CHECK (octet_length(name) BETWEEN 1 AND 128),
    target text NOT NULL
        CHECK (target = 'python' OR target LIKE 'sql:_%'),
    max_attempts integer NOT NULL DEFAULT 5
        CHECK (max_attempts >= 1),
    backoff_base interval NOT NULL DEFAULT '1 second'
        CHECK (backoff_base > '0' AND backoff_base <= backoff_cap),
    backoff_cap interval NOT NULL DEFAULT '5 minutes'
        CHECK (backoff_cap <= '7 days'),
    max_payload_bytes integer NOT NULL DEFAULT 1048576
        CHECK (max_payload_bytes BETWEEN 1024 AND 67108864),
    batch_commands integer NOT NULL DEFAULT 100
        CHECK (batch_commands BETWEEN 1 AND 10000),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE inturn.topic IS 'What kinds of command there are, and what applies each.';
COMMENT ON COLUMN inturn.topic.target IS 'python, or sql:SCHEMA.FUNCTION, which takes one inturn.command.';
COMMENT ON COLUMN inturn.topic.max_attempts IS 'A command that failed this often holds its key.';
COMMENT ON COLUMN inturn.topic.backoff_base IS 'The wait before the second attempt; doubled before each further one.';
COMMENT ON COLUMN inturn.topic.max_payload_bytes IS 'The longest payload, as text. At least 1024: append looks here only for longer ones.';
COMMENT ON COLUMN inturn.topic.batch_commands IS 'The most commands of one key in one turn.';

-- tables/command_log.sql
-- The commands, append-only. No foreign keys: they would lock the topic's row in every caller's transaction.
-- No CHECKs: every statement would parse them anew, a third of an append. append refuses what does not fit, and
-- nobody else may write here.
CREATE TABLE inturn.command_log (
    topic text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    seq bigint NOT NULL,
    name text COLLATE "C" NOT NULL,
    payload jsonb NOT NULL,
    idempotency_key text COLLATE "C",
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (topic, key, seq)
);
CREATE UNIQUE INDEX command_log_idempotency ON inturn.command_log (topic, key, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
COMMENT ON TABLE inturn.command_log IS 'The commands, append-only; per key numbered 1, 2, 3, ... in commit order.';
COMMENT ON COLUMN inturn.command_log.created_at IS 'When it was appended, under the lock of its key; its commit came later.';

-- tables/key_sequence.sql
-- The callers' side of a key: the row whose lock a caller holds to commit while it takes the next number.
-- Updated only when appliers have drained the key, and by every 32nd command that finds it undrained, so a hot
-- key's row gathers few dead versions. No CHECKs: see command_log.
CREATE TABLE inturn.key_sequence (
    topic text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    drained_seq bigint NOT NULL DEFAULT 0,
    known_seq bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (topic, key)
) WITH (fillfactor = 80);
COMMENT ON TABLE inturn.key_sequence IS 'The callers'' side of a key; its row lock orders the callers of the key.';
COMMENT ON COLUMN inturn.key_sequence.drained_seq IS 'Up to here appliers had applied everything when the key last went idle.';
COMMENT ON COLUMN inturn.key_sequence.known_seq IS
    'A number that the key has reached. The search for its last one starts here, or at drained_seq if that is greater: a probe of the log reads every entry of its key on the page.';

-- tables/key_cursor.sql
-- The appliers' side of a key: how far it is applied, and when an applier should come by.
-- No CHECKs: see command_log. held_at and ready_at are never both set.
CREATE TABLE inturn.key_cursor (
    topic text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    applied_seq bigint NOT NULL DEFAULT 0,
    ready_at timestamptz,
    epoch bigint NOT NULL DEFAULT 0,
    attempts integer NOT NULL DEFAULT 0,
    empty_turns integer NOT NULL DEFAULT 0,
    last_error text,
    failed_at timestamptz,
    held_at timestamptz,
    PRIMARY KEY (topic, key)
) WITH (fillfactor = 80);
-- The claim's index, and the only one that every turn has to maintain.
CREATE INDEX key_cursor_ready ON inturn.key_cursor (topic, ready_at) WHERE ready_at IS NOT NULL;
CREATE INDEX key_cursor_held ON inturn.key_cursor (topic, held_at) WHERE held_at IS NOT NULL;
COMMENT ON TABLE inturn.key_cursor IS 'The appliers'' side of a key: how far it is applied, and when it is ready.';
COMMENT ON COLUMN inturn.key_cursor.applied_seq IS 'Everything up to here has taken effect.';
COMMENT ON COLUMN inturn.key_cursor.ready_at IS 'From when on an applier may claim the key; NULL: idle or held.';
COMMENT ON COLUMN inturn.key_cursor.epoch IS 'Counts the turns of the key; the fencing token.';
COMMENT ON COLUMN inturn.key_cursor.attempts IS 'How often the next command has failed.';
COMMENT ON COLUMN inturn.key_cursor.empty_turns IS 'Turns in a row that found nothing to apply because a caller''s transaction was open.';
COMMENT ON COLUMN inturn.key_cursor.last_error IS 'The latest failure of the next command.';
COMMENT ON COLUMN inturn.key_cursor.held_at IS 'Since when the key stands still because its next command failed for good.';

-- tables/turn.sql
-- The history: one entry a turn that applied or failed something. Append-only.
CREATE TABLE inturn.turn (
    topic text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    epoch bigint NOT NULL,
    from_seq bigint NOT NULL,
    to_seq bigint NOT NULL,
    outcome text NOT NULL
        CHECK (outcome IN ('applied', 'retrying', 'held')),
    applier text NOT NULL,
    started_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    error text,
    -- A second turn under one epoch cannot be recorded, whatever went wrong before it.
    PRIMARY KEY (topic, key, epoch),
    CHECK (to_seq >= from_seq - 1),
    CHECK ((outcome = 'applied') = (error IS NULL))
);
COMMENT ON TABLE inturn.turn IS 'What each turn did: commands from_seq to to_seq were applied; then, unless the outcome is applied, to_seq + 1 failed.';
COMMENT ON COLUMN inturn.turn.to_seq IS 'The last command applied; from_seq - 1 when none was.';

-- tables/listener.sql
-- Whether an applier of the topic sleeps, so that an append need not NOTIFY (which takes a lock over the
-- whole database at commit) while all of them are busy. Unlogged: after a crash everyone is awake.
CREATE UNLOGGED TABLE inturn.listener (
    topic text COLLATE "C" PRIMARY KEY,
    asleep_until timestamptz NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE inturn.listener IS 'Until when some applier of the topic may be asleep; an append notifies only then.';

-- tables/command.sql
-- What a SQL target is called with.
CREATE TYPE inturn.command AS (
    topic text,
    key text,
    seq bigint,
    name text,
    payload jsonb,
    created_at timestamptz,
    attempt integer
);
COMMENT ON TYPE inturn.command IS 'One command, as a SQL target gets it; attempt counts from 1.';

-- functions/refuse_topic.sql
-- Says that a topic does not exist. Internal. Takes no locks. Raises IT001.
CREATE FUNCTION inturn.refuse_topic(topic text) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'IT001',
        MESSAGE = format('topic %s does not exist', coalesce(quote_literal(left(topic, 200)), 'NULL')),
        HINT = format('Create it first: SELECT inturn.create_topic(%L).', coalesce(left(topic, 200), 'NAME'));
END
$$;
COMMENT ON FUNCTION inturn.refuse_topic IS 'Internal: says that a topic does not exist.';

-- functions/refuse_command.sql
-- Refuses a command that cannot be appended; returns when nothing is wrong with it. Internal to append. Takes no locks.
--
-- Raises IT001 unknown topic, IT002 key, IT003 payload, IT004 command name, IT005 idempotency key.
CREATE FUNCTION inturn.refuse_command(topic text, key text, name text, payload jsonb, idempotency_key text) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    max_bytes integer;
BEGIN
    SELECT t.max_payload_bytes INTO max_bytes FROM inturn.topic t WHERE t.name = refuse_command.topic;
    IF NOT FOUND THEN
        PERFORM inturn.refuse_topic(topic);
    ELSIF coalesce(octet_length(key), 0) NOT BETWEEN 1 AND 512 THEN
        RAISE EXCEPTION USING ERRCODE = 'IT002',
            MESSAGE = format('key is %s', CASE WHEN key IS NULL THEN 'NULL' WHEN key = '' THEN 'empty'
                             ELSE format('%s octets long (it begins with %L)', octet_length(key), left(key, 40)) END),
            HINT = 'A key is 1 to 512 octets of text, compared byte by byte.';
    ELSIF coalesce(octet_length(name), 0) NOT BETWEEN 1 AND 128 THEN
        RAISE EXCEPTION USING ERRCODE = 'IT004',
            MESSAGE = format('command name for key %L is %s', key,
                             CASE WHEN name IS NULL THEN 'NULL' WHEN name = '' THEN 'empty'
                             ELSE format('%s octets long', octet_length(name)) END),
            HINT = 'A command name is 1 to 128 octets of text.';
    ELSIF octet_length(payload::text) > max_bytes THEN
        RAISE EXCEPTION USING ERRCODE = 'IT003',
            MESSAGE = format('payload of command %L for key %L is %s bytes, over the %s that topic %L allows',
                             name, key, octet_length(payload::text), max_bytes, topic),
            HINT = 'Store the large part elsewhere and append a reference to it, or raise the topic''s max_payload_bytes.';
    ELSIF octet_length(idempotency_key) NOT BETWEEN 1 AND 512 THEN
        RAISE EXCEPTION USING ERRCODE = 'IT005',
            MESSAGE = format('idempotency key of command %L for key %L is %s octets long', name, key, octet_length(idempotency_key)),
            HINT = 'An idempotency key is NULL or 1 to 512 octets of text.';
    END IF;
END
$$;
COMMENT ON FUNCTION inturn.refuse_command IS 'Internal to append: refuses a command that cannot be appended.';

-- functions/wake_key.sql
-- Makes an idle key ready, and notifies if an applier of its topic may be asleep. Internal to append.
--
-- The caller holds the key's row in key_sequence, and the key is drained: no applier holds the row in
-- key_cursor that is locked here, so no caller waits for a handler.
CREATE FUNCTION inturn.wake_key(topic text, key text) RETURNS void
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

-- functions/append_first.sql
-- Appends the first command to a new key and returns 1; NULL when the key has just become known. Internal to append.
--
-- Two first callers meet on the primary key: the second waits for the first, and gets NULL, or is the first itself
-- if that one rolled back. At REPEATABLE READ and SERIALIZABLE it gets 40001.
-- Locks, in this order, held to commit: the key's new row in key_sequence; its row in key_cursor.
-- Raises what refuse_command raises.
CREATE FUNCTION inturn.append_first(topic text, key text, name text, payload jsonb, idempotency_key text)
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

-- functions/insert_on_snapshot.sql
-- Inserts a command for a caller at REPEATABLE READ or SERIALIZABLE, and returns its seq. Internal to append.
--
-- Such a caller may read the last number, or miss an idempotency key, on a snapshot older than its lock. It then
-- collides with a command that it does not see, which ON CONFLICT turns from 23505 into 40001: retry the transaction.
-- The caller holds the key's row in key_sequence; known is a number that the key has reached.
CREATE FUNCTION inturn.insert_on_snapshot(
    topic text, key text, known bigint, name text, payload jsonb, idempotency_key text
) RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    new_seq bigint;
BEGIN
    INSERT INTO inturn.command_log AS l (topic, key, seq, name, payload, idempotency_key)
    VALUES (insert_on_snapshot.topic, insert_on_snapshot.key,
            1 + coalesce((SELECT l.seq FROM inturn.command_log l
                          WHERE l.topic = insert_on_snapshot.topic AND l.key = insert_on_snapshot.key AND l.seq > known
                          ORDER BY l.seq DESC LIMIT 1), known),
            insert_on_snapshot.name, coalesce(insert_on_snapshot.payload, '{}'), insert_on_snapshot.idempotency_key)
    ON CONFLICT DO NOTHING RETURNING l.seq INTO new_seq;
    RETURN new_seq;
END
$$;
COMMENT ON FUNCTION inturn.insert_on_snapshot IS 'Internal to append: inserts a command at REPEATABLE READ or SERIALIZABLE.';

-- functions/append.sql
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

-- functions/append_many.sql
-- Appends many commands of one topic in one round trip; returns their seqs in the order of the arrays.
--
-- keys, names, payloads and idempotency_keys run in parallel; payloads may be NULL (all '{}'), idempotency_keys too.
-- Commands of one key keep their order in the arrays.
-- Locks the keys in byte order, each as append does, so that calls of append_many never deadlock among themselves
-- as long as a transaction makes one such call.
-- Raises what append raises, and IT006 when the arrays differ in length.
CREATE FUNCTION inturn.append_many(
    topic text, keys text[], names text[],
    payloads jsonb[] DEFAULT NULL, idempotency_keys text[] DEFAULT NULL
) RETURNS bigint[]
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    seqs bigint[] := array_fill(NULL::bigint, ARRAY[coalesce(cardinality(keys), 0)]);
    command record;
BEGIN
    IF cardinality(keys) IS DISTINCT FROM cardinality(names)
        OR cardinality(payloads) <> cardinality(keys) OR cardinality(idempotency_keys) <> cardinality(keys) THEN
        RAISE EXCEPTION USING ERRCODE = 'IT006',
            MESSAGE = format('append_many got %s keys, %s names, %s payloads and %s idempotency keys',
                coalesce(cardinality(keys)::text, 'NULL'), coalesce(cardinality(names)::text, 'NULL'),
                coalesce(cardinality(payloads)::text, 'NULL'), coalesce(cardinality(idempotency_keys)::text, 'NULL')),
            HINT = 'Give arrays of one length; payloads and idempotency_keys may also be NULL.';
    END IF;
    FOR command IN
        SELECT * FROM unnest(keys, names, payloads, idempotency_keys)
            WITH ORDINALITY AS c (key, name, payload, idempotency_key, position)
        ORDER BY c.key COLLATE "C", c.position
    LOOP
        seqs[command.position] := inturn.append(
            topic, command.key, command.name, command.payload, command.idempotency_key);
    END LOOP;
    RETURN seqs;
END
$$;
COMMENT ON FUNCTION inturn.append_many IS 'Appends many commands of one topic in one round trip; returns their seqs in the order of the arrays.';

-- functions/append_from_outbox.sql
-- Appends a row that was inserted into the view outbox, and puts its seq into the row. Trigger function.
--
-- Locks and raises what append does, and IT007 when the row brings its own seq.
CREATE FUNCTION inturn.append_from_outbox() RETURNS trigger
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

-- views/outbox.sql
-- A door for ORMs and loaders that know only tables: INSERT and COPY append, each row as append does.
-- It reads as empty, for a caller may append and nothing more; RETURNING seq gives the new number.
CREATE VIEW inturn.outbox AS
SELECT NULL::text AS topic, NULL::text AS key, NULL::text AS name, NULL::jsonb AS payload,
       NULL::text AS idempotency_key, NULL::bigint AS seq
WHERE false;
COMMENT ON VIEW inturn.outbox IS 'INSERT or COPY into it to append commands; it reads as empty.';

CREATE TRIGGER append INSTEAD OF INSERT ON inturn.outbox
    FOR EACH ROW EXECUTE FUNCTION inturn.append_from_outbox();

-- functions/require_read_committed.sql
-- Refuses a turn in a transaction whose statements do not each take a new snapshot. Internal to finish and fail.
--
-- On one snapshot, finish would not see a command that was appended during the turn: its key would sleep for good.
-- Raises IT031. Takes no locks.
CREATE FUNCTION inturn.require_read_committed() RETURNS void
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION USING ERRCODE = 'IT031',
            MESSAGE = format('a turn was taken at isolation level %s', current_setting('transaction_isolation')),
            HINT = 'Appliers work at READ COMMITTED: SET TRANSACTION ISOLATION LEVEL READ COMMITTED.';
    END IF;
END
$$;
COMMENT ON FUNCTION inturn.require_read_committed IS 'Internal to finish and fail: refuses other isolation levels.';

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
CREATE FUNCTION inturn.claim(topic text, since timestamptz DEFAULT '-infinity', max_keys integer DEFAULT 1)
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

-- functions/claim_commands.sql
-- Claims ready keys as claim does, and returns their next commands in order: what a Python target applies.
--
-- A key comes with at most the topic's batch_commands; one whose next command has failed before, with that alone.
-- A key with nothing to apply comes as one row without a seq; it has to be finished too.
-- Locks and raises what claim does.
CREATE FUNCTION inturn.claim_commands(topic text, since timestamptz DEFAULT '-infinity', max_keys integer DEFAULT 1)
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
CREATE FUNCTION inturn.move_cursors(
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

-- functions/finish.sql
-- Ends turns: moves each key's cursor to its last applied command and lets it go idle, or to the back of the queue.
--
-- The arrays run in parallel, an element a key claimed in this transaction. A turn that applied nothing has
-- applied_seqs = from_seqs - 1: it leaves no entry in turn, and its key is ready again a little later, doubling
-- up to 100 ms, since a caller's transaction is open on it.
-- Locks the keys' rows in key_sequence, skipping those that a caller holds. From here to the commit the callers
-- of these keys wait: all handlers of a transaction run before it, and nothing after it.
-- Raises IT030 when this transaction does not hold the claim, or another turn was recorded since; IT031 outside READ COMMITTED.
CREATE FUNCTION inturn.finish(
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

-- functions/fail.sql
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

-- functions/target_function.sql
-- Returns the function that a SQL target names. Internal to check_topic and target_query. Takes no locks.
--
-- Raises IT012 when there is no such function taking one inturn.command.
CREATE FUNCTION inturn.target_function(topic text, target text) RETURNS regprocedure
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    name constant text := substr(target, length('sql:') + 1);
    resolved regprocedure;
BEGIN
    BEGIN
        resolved := to_regprocedure(name || '(inturn.command)');
    EXCEPTION WHEN syntax_error_or_access_rule_violation OR data_exception THEN
        resolved := NULL; -- no name at all, or in a schema that this role may not look into
    END;
    IF resolved IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'IT012',
            MESSAGE = format('target of topic %L: there is no function %s(inturn.command)', topic, name),
            HINT = format('Name it with its schema, and create it first: CREATE FUNCTION %s(command inturn.command) RETURNS void ...', name);
    END IF;
    RETURN resolved;
END
$$;
COMMENT ON FUNCTION inturn.target_function IS 'Internal: the function that a SQL target names.';

-- functions/target_query.sql
-- Returns the query that calls a SQL target for the next commands of some keys. Internal to the appliers.
--
-- Its parameters: $1 topic, $2 keys, $3 their applied_seqs, $4 the most commands of a key, $5 the attempt.
-- It gives one row: the keys that had commands, the last seq of each, and how many commands there were.
-- Commands are called as they are read, never collected: a key's in order (LATERAL is a nested loop over a sorted
-- inner side), one key after the other. OFFSET 0 keeps the call below the grouping, which may sort.
-- Takes no locks. Raises what target_function does.
CREATE FUNCTION inturn.target_query(topic text, target text) RETURNS text
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
CREATE PROCEDURE inturn.apply(
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

-- functions/announce_sleep.sql
-- Announces that an applier of these topics is about to sleep, so that appends notify it for the next two seconds.
--
-- The applier commits, looks once more for ready keys, and only then sleeps, for a second at most.
-- Locks the topics' rows in listener, in byte order, and writes them at most once a second.
CREATE FUNCTION inturn.announce_sleep(topics text[]) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    INSERT INTO inturn.listener AS l (topic, asleep_until)
    SELECT t.topic, clock_timestamp() + interval '2 seconds' FROM unnest(topics) t (topic)
    WHERE NOT EXISTS (SELECT FROM inturn.listener l
                      WHERE l.topic = t.topic AND l.asleep_until > clock_timestamp() + interval '1 second')
    ORDER BY t.topic COLLATE "C"
    ON CONFLICT (topic) DO UPDATE SET asleep_until = EXCLUDED.asleep_until;
END
$$;
COMMENT ON FUNCTION inturn.announce_sleep IS 'Announces that an applier of these topics is about to sleep.';

-- functions/next_ready.sql
-- Returns when the next key of these topics becomes ready, NULL when none is due. Takes no locks.
--
-- since: the database's clock when the applier last looked; keys that were ready before are in other hands.
CREATE FUNCTION inturn.next_ready(topics text[], since timestamptz) RETURNS timestamptz
LANGUAGE plpgsql STABLE
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
AS $$
BEGIN
    RETURN (SELECT min(c.ready_at) FROM unnest(topics) t (topic) CROSS JOIN LATERAL (
        SELECT c.ready_at FROM inturn.key_cursor c
        WHERE c.topic = t.topic AND c.ready_at > since ORDER BY c.ready_at LIMIT 1) c);
END
$$;
COMMENT ON FUNCTION inturn.next_ready IS 'When the next key of these topics becomes ready; NULL when none is due.';

-- functions/check_topic.sql
-- Refuses a topic whose settings are out of range. Internal to create_topic. Takes no locks.
--
-- Raises IT011 for the first setting that is, IT012 for a target that cannot be called.
CREATE FUNCTION inturn.check_topic(topic inturn.topic) RETURNS void
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
CREATE FUNCTION inturn.pending_commands(topics text[]) RETURNS bigint
LANGUAGE sql STABLE
AS $$
SELECT count(*) FROM inturn.key_cursor c
JOIN inturn.command_log l ON l.topic = c.topic AND l.key = c.key AND l.seq > c.applied_seq
WHERE c.topic = ANY (topics) AND c.ready_at <= clock_timestamp()
$$;
COMMENT ON FUNCTION inturn.pending_commands IS 'Counts the commands of ready keys that are not applied.';

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

