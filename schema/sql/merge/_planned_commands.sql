-- Returns the next commands of keys as their turns are to take them: see _plan_merges. In the order of keys and, of each, in order.
-- Internal to the appliers. Takes no locks.
--
-- The parameters are those of _claimed_commands: of a key that is neither claimed nor leased for its turn, nothing is returned.
-- Of numbers that were merged only the last one comes, with from_seq, the first one; where they become nothing, with no name: it is
-- done as it is. Raises what _held_seq does.
CREATE FUNCTION inturn._planned_commands(topic text, keys text[], epochs bigint[], applied_seqs bigint[], max_commands integer)
RETURNS TABLE (place bigint, key text, seq bigint, name text, payload jsonb, created_at timestamptz, from_seq bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
#variable_conflict use_column
DECLARE
    most constant integer := (
        SELECT least(_planned_commands.max_commands, t.batch_commands) FROM inturn.topic t WHERE t.name = _planned_commands.topic);
    turn record;
BEGIN
    FOR turn IN
        SELECT t.place, t.key, t.epoch, greatest(t.seq, inturn._held_seq(_planned_commands.topic, t.key, t.epoch)) AS applied_seq
        FROM unnest(keys, epochs, applied_seqs) WITH ORDINALITY t (key, epoch, seq, place)
        WHERE inturn._held_seq(_planned_commands.topic, t.key, t.epoch) IS NOT NULL ORDER BY t.place
    LOOP
        RETURN QUERY
        SELECT turn.place, turn.key, l.seq, CASE WHEN p.seq IS NULL OR p.into_seq = l.seq THEN coalesce(p.name, l.name) END,
               CASE WHEN p.seq IS NULL OR p.into_seq = l.seq THEN coalesce(p.payload, l.payload) END, l.created_at,
               coalesce(p.from_seq, l.seq)
        FROM inturn._next_commands(_planned_commands.topic, turn.key, turn.applied_seq, most) l
        LEFT JOIN inturn.merge_plan p
          ON p.topic = _planned_commands.topic AND p.key = turn.key AND p.epoch = turn.epoch AND p.seq = l.seq
        WHERE p.seq IS NULL OR p.to_seq = l.seq
        ORDER BY l.seq;
    END LOOP;
END
$$;
COMMENT ON FUNCTION inturn._planned_commands IS 'Internal to the appliers: the next commands of keys as their turns are to take them.';
