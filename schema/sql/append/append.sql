CREATE FUNCTION inturn.append(
    topic text, key text, name text,
    payload jsonb DEFAULT '{}', idempotency_key text DEFAULT NULL, seq bigint DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
-- Appends one command to a key, in the caller's transaction, and returns its seq; NULL where numbers are given on
-- arrival, later.
--
-- The same idempotency key again on the same key, with the same name and payload, appends nothing and returns the first
-- seq.
-- seq: the command's number, in a topic whose callers number (see _append_given); NULL in every other.
-- Locks, held to commit: the key's row in key_sequence, but where numbers are given on arrival. Inserts the ticket of a
-- key that was idle, which nobody else does.
-- Raises IT001 to IT005 (see _refuse_command), IT008 (see _refuse_reuse), IT009 (see _refuse_pending), IT014 (see
-- _require_grant); 40001 when the caller's snapshot is older than the key's last append or prune.
-- A statement is a tenth of an append, a call of a function 3 per cent, and an operator half of one, for each is set up
-- anew in every transaction: so a plain command is appended here, and any other one looked at in _begin_append.
DECLARE
    numbering text; -- NULL: the command is not plain
    locked boolean; -- the key's row: true, it was there; false, it was not; NULL, not looked for, or somebody else's
    max_pending bigint; asleep boolean;
    applied bigint; last_epoch bigint; wakes boolean; new_seq bigint; -- scalars: a record costs more
BEGIN
    -- Only for a longer key and name, or payload, are the limits looked up.
    SELECT CASE WHEN append.seq IS NULL AND t.max_pending IS NULL
                AND (t.callers IS NULL
                     OR coalesce(nullif(current_setting('role'), 'none'), session_user) = ANY (t.callers))
                AND append.key <> '' AND append.name <> '' AND octet_length(append.key || append.name) <= 128
                AND append.payload >= '{}' AND octet_length(append.payload::text) <= 1024
                AND current_setting('transaction_isolation') = 'read committed'
           THEN t.numbering END
    INTO numbering FROM inturn.topic t WHERE t.name = append.topic;
    IF idempotency_key IS NOT NULL THEN
        IF octet_length(idempotency_key) NOT BETWEEN 1 AND 512 OR starts_with(idempotency_key, 'inturn.') THEN
            numbering := NULL; -- to be refused
        END IF;
    END IF;
    IF numbering = 'assigned' THEN
        SELECT true INTO locked FROM inturn.key_sequence s
        WHERE s.topic = append.topic AND s.key >= append.key AND s.key <= append.key
        ORDER BY s.key DESC LIMIT 1 FOR UPDATE;
        IF locked IS NULL THEN
            INSERT INTO inturn.key_sequence (topic, key) VALUES (append.topic, append.key) ON CONFLICT DO NOTHING;
            IF FOUND THEN
                locked := false;
            END IF;
        END IF;
    ELSIF numbering = 'arrival' AND idempotency_key IS NULL THEN
        INSERT INTO inturn.intake (topic, key, name, payload)
        VALUES (append.topic, append.key, append.name, append.payload)
        RETURNING EXISTS (SELECT FROM inturn.listener l WHERE l.topic = ANY (ARRAY[append.topic, ''])
                            AND l.asleep_until > statement_timestamp() AND l.asleep_until > clock_timestamp())
        INTO asleep;
        IF asleep THEN
            PERFORM inturn._notify_appliers(topic);
        END IF;
        RETURN NULL;
    END IF;
    IF locked IS NULL THEN
        SELECT b.locked, b.new_seq, b.max_pending INTO locked, new_seq, max_pending
        FROM inturn._begin_append(topic, key, name, payload, idempotency_key, seq) b;
    END IF;

    -- From here on statements see every earlier append to the key: its caller has committed or is gone.
    IF locked THEN
        IF idempotency_key IS NOT NULL THEN
            new_seq := inturn._number_of(topic, key, name, payload, idempotency_key);
            IF new_seq IS NOT NULL THEN
                RETURN new_seq;
            END IF;
        END IF;
        -- No number up to applied is looked at: the probe reads every entry of its key on the page.
        SELECT coalesce(l.seq, u.applied_seq, 0) + 1, u.applied_seq, u.epoch,
               -- The first command after the drained ones finds the key idle. Any later one finds it awake, or held.
               -- By name, for an index-only scan costs more to set up.
               u.drained AND l.name IS NULL
        INTO new_seq, applied, last_epoch, wakes
        FROM (SELECT) one LEFT JOIN LATERAL (
            SELECT u.applied_seq, u.epoch, u.drained FROM inturn.turn u
            WHERE u.topic = append.topic AND u.key = append.key ORDER BY u.epoch DESC LIMIT 1) u ON true
        LEFT JOIN LATERAL (
            SELECT l.seq, l.name FROM inturn.command_log l
            WHERE l.topic = append.topic AND l.key = append.key AND l.seq > coalesce(u.applied_seq, 0)
            ORDER BY l.seq DESC LIMIT 1) l ON true;
        INSERT INTO inturn.command_log (topic, key, seq, name, payload, idempotency_key)
        VALUES (append.topic, append.key, new_seq, append.name, coalesce(append.payload, '{}'), append.idempotency_key);
        IF max_pending IS NOT NULL THEN
            IF new_seq > coalesce(applied, 0) + max_pending THEN
                PERFORM inturn._refuse_pending(topic, key, new_seq, max_pending);
            END IF;
        END IF;
        IF wakes THEN
            PERFORM inturn._wake_key(topic, key, last_epoch, applied);
        END IF;
    ELSIF locked IS FALSE THEN
        INSERT INTO inturn.command_log (topic, key, seq, name, payload, idempotency_key)
        SELECT append.topic, append.key, 1, append.name, coalesce(append.payload, '{}'), append.idempotency_key
        WHERE (SELECT f.seq FROM inturn.forgotten f WHERE f.topic = append.topic) IS NULL;
        IF NOT FOUND THEN
            RETURN inturn._append_first(topic, key, name, payload, idempotency_key);
        END IF;
        -- As _wake_key does, but that no ticket can be there: only a known key is paused.
        INSERT INTO inturn.ticket (topic, key, epoch, applied_seq, ready_at)
        VALUES (append.topic, append.key, 0, 0, clock_timestamp())
        RETURNING EXISTS (SELECT FROM inturn.listener l WHERE l.topic = ANY (ARRAY[append.topic, ''])
                            AND l.asleep_until > statement_timestamp() AND l.asleep_until > clock_timestamp())
        INTO asleep;
        IF asleep THEN
            PERFORM inturn._notify_appliers(topic);
        END IF;
        RETURN 1;
    END IF;
    RETURN new_seq;
END
$$;
COMMENT ON FUNCTION inturn.append IS 'Appends one command to a key, in the caller''s transaction, and returns its seq.';
