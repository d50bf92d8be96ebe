CREATE FUNCTION inturn._read_batch(topic text, key text, applied_seq bigint, max_commands integer, attempt integer)
RETURNS inturn.command[]
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
-- Returns the next commands of a key in order, up to the first gap: what a SQL target for batches is called with. NULL: there
-- are none. Internal to _batch_query.
--
-- Their payloads have at most _max_claim_octets, but the first command comes however long it is. Read one by one, so that what
-- does not fit is not read. Takes no locks.
DECLARE
    max_octets constant bigint := inturn._max_claim_octets();
    octets bigint := 0;
    place integer := 0;
    batch inturn.command[];
    command record;
BEGIN
    FOR command IN
        SELECT l.seq, l.name, l.payload, l.created_at FROM inturn.command_log l
        WHERE l.topic = _read_batch.topic AND l.key = _read_batch.key AND l.seq > _read_batch.applied_seq
        ORDER BY l.seq LIMIT max_commands
    LOOP
        octets := octets + octet_length(command.payload::text);
        EXIT WHEN command.seq <> applied_seq + place + 1 OR place > 0 AND octets > max_octets;
        place := place + 1;
        batch := array_append(batch, ROW(topic, key, command.seq, command.name, command.payload, command.created_at, attempt)::inturn.command);
    END LOOP;
    RETURN batch;
END
$$;
COMMENT ON FUNCTION inturn._read_batch IS 'Internal: the next commands of a key, for a SQL target for batches.';
