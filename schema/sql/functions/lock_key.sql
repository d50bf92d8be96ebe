-- Locks a key that had no row in key_sequence until the end of the transaction, and returns its drained_seq.
-- Internal to append.
--
-- Two first callers meet on the primary key: the second waits for the first, then finds its row and locks it, or
-- inserts its own if the first rolled back.
CREATE FUNCTION inturn.lock_key(topic text, key text) RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    drained bigint;
BEGIN
    LOOP
        INSERT INTO inturn.key_sequence AS s (topic, key) VALUES (lock_key.topic, lock_key.key)
        ON CONFLICT DO NOTHING RETURNING s.drained_seq INTO drained;
        EXIT WHEN FOUND;
        SELECT s.drained_seq INTO drained FROM inturn.key_sequence s
        WHERE s.topic = lock_key.topic AND s.key = lock_key.key FOR UPDATE;
        EXIT WHEN FOUND;
    END LOOP;
    RETURN drained;
END
$$;
COMMENT ON FUNCTION inturn.lock_key IS 'Internal to append: locks a new key for its callers and returns its drained_seq.';
