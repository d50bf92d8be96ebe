-- Returns the next commands of a key in order, up to the first gap: what a SQL target for batches is called with, with
-- the first number and the one up to which that is all there is to do. Internal to _batch_query.
--
-- epoch: of its turn, or NULL; applied_seq: after which to read. Of a key that this transaction has not claimed, and
-- that is not leased for that turn, nothing is returned.
-- Their payloads have at most _max_claim_octets, but the first command comes however long it is. Read one by one, so
-- that what does not fit is not read.
-- merged: as the turn has planned it (see _plan_merges): of merged numbers the last one comes, as what they became, or
-- none.
-- Takes no locks. Raises what _held_seq does.
CREATE FUNCTION inturn._read_batch(
    topic text, key text, epoch bigint, applied_seq bigint, merged boolean, max_commands integer, attempt integer,
    OUT batch inturn.command[], OUT first_seq bigint, OUT last_seq bigint
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    max_octets constant bigint := inturn._max_claim_octets();
    octets bigint := 0;
    read_seq bigint := inturn._held_seq(topic, key, epoch);
    command record;
BEGIN
    IF read_seq IS NULL THEN
        RETURN;
    END IF;
    read_seq := greatest(read_seq, applied_seq);
    batch := '{}'; last_seq := read_seq; first_seq := read_seq + 1;
    FOR command IN
        SELECT l.seq, coalesce(p.name, l.name) AS name, coalesce(p.payload, l.payload) AS payload, l.created_at,
               p.to_seq, p.seq IS NULL OR p.into_seq = l.seq AS is_called
        FROM inturn.command_log l LEFT JOIN LATERAL (
            SELECT m.* FROM inturn.merge_plan m
            WHERE merged AND m.topic = l.topic AND m.key = l.key AND m.epoch = _read_batch.epoch AND m.seq = l.seq
            OFFSET 0) p ON true
        WHERE l.topic = _read_batch.topic AND l.key = _read_batch.key AND l.seq > read_seq
        ORDER BY l.seq LIMIT max_commands
    LOOP
        EXIT WHEN command.seq <> read_seq + 1;
        read_seq := command.seq;
        CONTINUE WHEN command.to_seq <> command.seq; -- its last one stands for it
        IF command.is_called THEN
            octets := octets + octet_length(command.payload::text);
            EXIT WHEN cardinality(batch) > 0 AND octets > max_octets;
            batch := array_append(batch, ROW(topic, key, command.seq, command.name, command.payload, command.created_at,
                                             attempt)::inturn.command);
        END IF;
        last_seq := command.seq;
    END LOOP;
END
$$;
COMMENT ON FUNCTION inturn._read_batch IS
    'Internal to the appliers: the next commands of a key, for a SQL target for batches.';
