-- Reads the next commands of keys that this transaction has claimed, in the order of keys and, of each, in order.
-- Internal to claim_commands and _apply_key.
--
-- epochs: of their turns, as claim returned them; applied_seqs: after which to read. Of a key that this transaction has not
-- claimed, nothing is returned. Where callers number, only up to the first gap: numbering the rows costs a tenth of a deep
-- drain, so only there. max_commands: of a key; NULL, or more than the topic's batch_commands: that many.
-- Takes no locks.
CREATE FUNCTION inturn._claimed_commands(topic text, keys text[], epochs bigint[], applied_seqs bigint[], max_commands integer)
RETURNS TABLE (place bigint, key text, seq bigint, name text, payload jsonb, created_at timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
#variable_conflict use_column
DECLARE
    given boolean;
    most integer;
BEGIN
    SELECT t.numbering = 'given', least(_claimed_commands.max_commands, t.batch_commands) INTO given, most
    FROM inturn.topic t WHERE t.name = _claimed_commands.topic;
    IF given THEN
        RETURN QUERY
        SELECT t.place, l.key, l.seq, l.name, l.payload, l.created_at
        FROM unnest(keys, epochs, applied_seqs) WITH ORDINALITY t (key, epoch, seq, place)
        CROSS JOIN LATERAL (
            SELECT c.applied_seq FROM inturn.ticket c
            WHERE c.topic = _claimed_commands.topic AND c.key = t.key AND c.epoch = t.epoch - 1
              AND c.xmax = pg_current_xact_id()::xid LIMIT 1) c
        CROSS JOIN LATERAL inturn._next_commands(_claimed_commands.topic, t.key, greatest(t.seq, c.applied_seq), most) l;
    ELSE
        RETURN QUERY
        SELECT t.place, t.key, l.seq, l.name, l.payload, l.created_at
        FROM unnest(keys, epochs, applied_seqs) WITH ORDINALITY t (key, epoch, seq, place)
        CROSS JOIN LATERAL (
            SELECT c.applied_seq FROM inturn.ticket c
            WHERE c.topic = _claimed_commands.topic AND c.key = t.key AND c.epoch = t.epoch - 1
              AND c.xmax = pg_current_xact_id()::xid LIMIT 1) c
        CROSS JOIN LATERAL (
            SELECT l.seq, l.name, l.payload, l.created_at FROM inturn.command_log l
            WHERE l.topic = _claimed_commands.topic AND l.key = t.key AND l.seq > greatest(t.seq, c.applied_seq)
            ORDER BY l.seq LIMIT most) l;
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._claimed_commands IS 'Internal to the appliers: the next commands of keys that this transaction has claimed.';
