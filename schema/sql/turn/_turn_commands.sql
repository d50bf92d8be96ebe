-- Returns the next commands of keys, for the turns that have them. In the order of keys and, of each, in order.
-- Internal to the appliers.
--
-- epochs: of their turns, as the claim returned them; applied_seqs: after which to read. Of a key that this
-- transaction has not claimed, and that is not leased for that turn, nothing is returned. max_commands: of a key;
-- NULL, or more than the topic's batch_commands: that many. Where callers number, only up to the first gap: finding
-- it costs a tenth of a deep drain, so it is looked for only there.
-- Where the topic has merge rules, as the turn has planned them (see _plan_merges): of numbers that were merged only
-- the last one comes, with from_seq, the first one; where they become nothing, it comes without a name: to pass it is
-- all there is to do.
-- Takes no locks. Raises what _is_leased does.
CREATE FUNCTION inturn._turn_commands(topic text, keys text[], epochs bigint[], applied_seqs bigint[],
                                      max_commands integer)
RETURNS TABLE (place bigint, key text, seq bigint, name text, payload jsonb, created_at timestamptz, from_seq bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
#variable_conflict use_column
DECLARE
    given boolean;
    merged boolean;
    most integer;
BEGIN
    SELECT t.numbering = 'given', t.merges, least(_turn_commands.max_commands, t.batch_commands)
    INTO given, merged, most
    FROM inturn.topic t WHERE t.name = _turn_commands.topic;
    IF merged THEN
        RETURN QUERY
        SELECT h.place, h.key, l.*
        FROM inturn._held_keys(_turn_commands.topic, keys, epochs, applied_seqs) h
        CROSS JOIN LATERAL (
            SELECT l.seq, CASE WHEN p.seq IS NULL OR p.into_seq = l.seq THEN coalesce(p.name, l.name) END,
                   CASE WHEN p.seq IS NULL OR p.into_seq = l.seq THEN coalesce(p.payload, l.payload) END, l.created_at,
                   coalesce(p.from_seq, l.seq)
            FROM inturn._next_commands(_turn_commands.topic, h.key, h.applied_seq, most) l
            LEFT JOIN inturn.merge_plan p ON p.topic = _turn_commands.topic AND p.key = h.key AND p.epoch = h.epoch
                                            AND p.seq = l.seq
            WHERE p.seq IS NULL OR p.to_seq = l.seq
            ORDER BY l.seq) l;
    ELSIF given THEN
        RETURN QUERY
        SELECT h.place, h.key, l.seq, l.name, l.payload, l.created_at, l.seq
        FROM inturn._held_keys(_turn_commands.topic, keys, epochs, applied_seqs) h
        CROSS JOIN LATERAL inturn._next_commands(_turn_commands.topic, h.key, h.applied_seq, most) l;
    ELSE
        RETURN QUERY
        SELECT h.place, h.key, l.seq, l.name, l.payload, l.created_at, l.seq
        FROM inturn._held_keys(_turn_commands.topic, keys, epochs, applied_seqs) h
        CROSS JOIN LATERAL (
            SELECT l.seq, l.name, l.payload, l.created_at FROM inturn.command_log l
            WHERE l.topic = _turn_commands.topic AND l.key = h.key AND l.seq > h.applied_seq
            ORDER BY l.seq LIMIT most) l;
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._turn_commands IS
    'Internal to the appliers: the next commands of keys, for the turns that have them.';
