-- Claims ready keys as claim does, and returns their next commands in order: what a Python target applies.
--
-- A key comes with at most the topic's batch_commands; one whose next command has failed before, with that alone.
-- A key with nothing to apply comes as one row without a seq; it has to be finished too.
-- Locks and raises what claim does.
CREATE FUNCTION inturn.claim_commands(topic text, since timestamptz DEFAULT '-infinity', max_keys integer DEFAULT 1)
RETURNS TABLE (
    key text, applied_seq bigint, epoch bigint, attempt integer, ready_at timestamptz,
    seq bigint, name text, payload jsonb, created_at timestamptz, lost boolean
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
               l.seq, l.name, l.payload, l.created_at, claimed.lost
        FROM inturn._next_commands(claim_commands.topic, claimed.key, claimed.applied_seq,
                                  CASE WHEN claimed.attempts > 0 THEN 1 ELSE max_commands END) l;
        IF NOT FOUND THEN
            key := claimed.key; applied_seq := claimed.applied_seq; epoch := claimed.epoch;
            attempt := claimed.attempts + 1; ready_at := claimed.ready_at; lost := claimed.lost;
            RETURN NEXT;
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION inturn.claim_commands IS 'Claims ready keys and returns their next commands in order.';
