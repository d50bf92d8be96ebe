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
