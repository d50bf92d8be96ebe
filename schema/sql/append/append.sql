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
-- The last turn and the last number are looked for in statements after the lock: on the lock's own snapshot, numbers
-- would repeat, and a key that went idle meanwhile would not be woken.
DECLARE
    plain boolean; fresh boolean; numbering text; max_pending bigint; callers_granted boolean; locked boolean;
    applied bigint; last_epoch bigint; drained boolean; new_seq bigint; -- scalars: a record costs more
BEGIN
    -- Again where the row went while it was waited for: a prune has forgotten the key.
    LOOP
        -- plain: there is nothing to refuse, and nothing more to look up. fresh: at READ COMMITTED. They stand here,
        -- for an expression of its own costs a per cent of an append. Every topic takes 1024 bytes of payload; only
        -- for more is its limit looked up.
        SELECT t.numbering <> 'given' AND append.seq IS NULL AND append.idempotency_key IS NULL AND t.max_pending IS NULL
               AND (NOT t.callers_granted OR EXISTS (SELECT FROM inturn.topic_grant g WHERE g.topic = t.name AND g.role = 'caller'
                    AND g.login = coalesce(nullif(current_setting('role'), 'none'), session_user)))
               AND append.key <> '' AND octet_length(append.key) <= 512
               AND append.name <> '' AND octet_length(append.name) <= 128
               AND (append.payload >= '{}' AND octet_length(append.payload::text) <= 1024) IS NOT FALSE,
               current_setting('transaction_isolation') = 'read committed', t.numbering, t.max_pending, t.callers_granted
        INTO plain, fresh, numbering, max_pending, callers_granted FROM inturn.topic t WHERE t.name = append.topic;
        IF plain IS NOT TRUE THEN
            IF numbering = 'given' OR seq IS NOT NULL THEN
                RETURN inturn._append_given(topic, key, seq, name, payload, idempotency_key);
            END IF;
            IF callers_granted THEN
                PERFORM inturn._require_grant(topic, 'caller');
            END IF;
            PERFORM inturn._refuse_command(topic, key, name, payload, idempotency_key);
        END IF;
        IF numbering = 'arrival' THEN
            RETURN inturn._append_arrival(topic, key, name, payload, idempotency_key, max_pending);
        END IF;
        SELECT true INTO locked FROM inturn.key_sequence s
        WHERE s.topic = append.topic AND s.key >= append.key AND s.key <= append.key ORDER BY s.key DESC LIMIT 1 FOR UPDATE;
        EXIT WHEN locked;
        -- No row yet: this is the key's first command, unless another caller's has just committed.
        new_seq := inturn._append_first(topic, key, name, payload, idempotency_key, fresh);
        CONTINUE WHEN new_seq IS NULL;
        RETURN new_seq;
    END LOOP;

    -- From here on statements see every earlier append to the key: its caller has committed or is gone.
    IF idempotency_key IS NOT NULL THEN
        new_seq := inturn._number_of(topic, key, name, payload, idempotency_key);
        IF new_seq IS NOT NULL THEN
            RETURN new_seq;
        END IF;
    END IF;
    -- No number up to applied is looked at: the probe reads every entry of its key on the page.
    SELECT u.applied_seq, u.epoch, u.drained INTO applied, last_epoch, drained FROM inturn.turn u
    WHERE u.topic = append.topic AND u.key = append.key ORDER BY u.epoch DESC LIMIT 1;
    IF NOT fresh THEN
        RETURN inturn._append_on_snapshot(topic, key, coalesce(applied, 0), name, payload, idempotency_key, max_pending);
    END IF;
    INSERT INTO inturn.command_log AS l (topic, key, seq, name, payload, idempotency_key)
    VALUES (append.topic, append.key,
            1 + coalesce((SELECT l.seq FROM inturn.command_log l
                          WHERE l.topic = append.topic AND l.key = append.key AND l.seq > coalesce(applied, 0)
                          ORDER BY l.seq DESC LIMIT 1), applied, 0),
            append.name, coalesce(append.payload, '{}'), append.idempotency_key)
    RETURNING l.seq INTO new_seq;
    IF NOT plain THEN
        IF new_seq > coalesce(applied, 0) + max_pending THEN
            PERFORM inturn._refuse_pending(topic, key, new_seq, max_pending);
        END IF;
    END IF;

    -- The first command after the drained ones finds the key idle. Any later one finds it awake, or held.
    IF drained AND new_seq = applied + 1 THEN
        PERFORM inturn._wake_key(topic, key, last_epoch, applied);
    END IF;
    RETURN new_seq;
END
$$;
COMMENT ON FUNCTION inturn.append IS 'Appends one command to a key, in the caller''s transaction, and returns its seq.';
