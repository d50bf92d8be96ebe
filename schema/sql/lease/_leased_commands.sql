-- Reads the next commands of keys that are leased, as _claimed_commands does of claimed ones. Internal to the appliers.
--
-- epochs: of their leases: of a key that another claim has taken since, nothing is returned. Takes no locks.
-- Raises IT014 when the topic is granted to other appliers only.
CREATE FUNCTION inturn._leased_commands(topic text, keys text[], epochs bigint[], applied_seqs bigint[], max_commands integer)
RETURNS TABLE (place bigint, key text, seq bigint, name text, payload jsonb, created_at timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
#variable_conflict use_column
DECLARE
    most constant integer := (
        SELECT least(_leased_commands.max_commands, t.batch_commands) FROM inturn.topic t WHERE t.name = _leased_commands.topic);
BEGIN
    IF EXISTS (SELECT FROM inturn.topic_grant g WHERE g.topic = _leased_commands.topic AND g.role = 'applier') THEN
        PERFORM inturn._require_grant(_leased_commands.topic, 'applier');
    END IF;
    RETURN QUERY
    SELECT t.place, l.key, l.seq, l.name, l.payload, l.created_at
    FROM unnest(keys, epochs, applied_seqs) WITH ORDINALITY t (key, epoch, seq, place)
    CROSS JOIN LATERAL (
        SELECT c.applied_seq FROM inturn.ticket c
        WHERE c.topic = _leased_commands.topic AND c.key = t.key AND c.epoch = t.epoch AND EXISTS (
            SELECT FROM inturn.key_mark m
            WHERE m.topic = c.topic AND m.key = c.key AND m.epoch = c.epoch AND m.claimed_by IS NOT NULL) LIMIT 1) c
    CROSS JOIN LATERAL inturn._next_commands(_leased_commands.topic, t.key, greatest(t.seq, c.applied_seq), most) l;
END
$$;
COMMENT ON FUNCTION inturn._leased_commands IS 'Internal to the appliers: the next commands of keys that are leased.';
