CREATE FUNCTION inturn.advance(topic text, key text, epoch bigint, seq bigint, lease interval DEFAULT NULL)
RETURNS timestamptz
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
-- Records that the next command of a leased key took effect; returns until when the lease runs now, or NULL when the
-- key has to be let go: it, or its topic, was paused, and the lease has been ended with this command.
--
-- seq: the command, with what was merged into it and what became nothing before it; the last one again changes nothing.
-- The lease is renewed when less than half of it is left.
-- lease: its length; NULL for the topic's own.
-- Locks the key's ticket; what release locks. Raises IT032 when seq is not the next, and what _hold_lease and
-- _lease_end raise.
DECLARE
    was constant inturn.key_cursor := inturn._hold_lease(topic, key, epoch);
    cursor inturn.key_cursor := was;
    settings inturn.topic;
    fresh timestamptz;
    next_seq bigint := was.applied_seq + 1;
BEGIN
    SELECT * INTO settings FROM inturn.topic t WHERE t.name = advance.topic;
    IF settings.merges THEN
        next_seq := inturn._next_planned(topic, key, epoch, was.applied_seq);
    END IF;
    IF seq IS DISTINCT FROM was.applied_seq AND (seq IS DISTINCT FROM next_seq OR NOT EXISTS (
        SELECT FROM inturn._next_commands(topic, key, seq - 1, 1))) THEN
        RAISE EXCEPTION USING ERRCODE = 'IT032',
            MESSAGE = format('command %s of key %L of topic %L is not the next: that is %s',
                             coalesce(seq::text, 'NULL'), key, topic, next_seq),
            HINT = 'Report the commands of a key one by one, in order, each once it took effect.';
    END IF;
    cursor.applied_seq := seq;
    IF seq > was.applied_seq THEN
        cursor.attempts := 0; cursor.lost := 0; cursor.empty_turns := 0; cursor.last_error := NULL;
        cursor.failed_at := NULL;
        INSERT INTO inturn.turn AS t (topic, key, epoch, from_seq, to_seq, applied_seq, drained, outcome,
                                      applier, started_at)
        VALUES (advance.topic, advance.key, advance.epoch, was.applied_seq + 1, advance.seq, advance.seq,
                false, 'applied',
                was.claimed_by, was.claimed_at)
        ON CONFLICT ON CONSTRAINT turn_pkey DO UPDATE SET
            to_seq = EXCLUDED.to_seq, applied_seq = EXCLUDED.applied_seq, finished_at = EXCLUDED.finished_at;
    END IF;
    IF seq > was.applied_seq AND (SELECT true FROM inturn.waiter w
                                  WHERE w.topic = advance.topic AND w.key = advance.key AND w.until > now()
                                  LIMIT 1) THEN
        PERFORM inturn._notify_waiters(topic, ARRAY[key]);
    END IF;
    fresh := inturn._lease_end(settings, lease);
    IF was.lease_until < fresh - coalesce(lease, settings.lease) / 2 THEN
        cursor.lease_until := fresh;
        cursor.ready_at := inturn._next_ready_at(cursor, fresh);
    END IF;
    IF inturn._stored_state(was) = 'paused'
        OR settings.paused_at IS NOT NULL AND clock_timestamp() < coalesce(settings.paused_until, 'infinity') THEN
        cursor.claimed_by := NULL; cursor.claimed_at := NULL; cursor.lease_until := NULL;
        PERFORM inturn._requeue(was, cursor);
        RETURN NULL;
    ELSIF (cursor.attempts, cursor.lost, cursor.lease_until, cursor.last_error)
        IS DISTINCT FROM (was.attempts, was.lost, was.lease_until, was.last_error) THEN
        PERFORM inturn._save_key(was, cursor);
    ELSE
        -- Once a command: its marks stay as they are.
        UPDATE inturn.ticket t SET applied_seq = advance.seq, empty_turns = cursor.empty_turns
        WHERE t.topic = advance.topic AND t.key = advance.key AND t.epoch = advance.epoch;
    END IF;
    RETURN cursor.lease_until;
END
$$;
COMMENT ON FUNCTION inturn.advance IS
    'Records that the next command of a leased key took effect, and renews the lease.';
