CREATE PROCEDURE inturn.prune(
    topic text DEFAULT NULL, older_than interval DEFAULT NULL, max_seconds double precision DEFAULT NULL,
    INOUT commands bigint DEFAULT 0, INOUT turns bigint DEFAULT 0, INOUT forgotten bigint DEFAULT 0,
    INOUT done boolean DEFAULT true
)
LANGUAGE plpgsql
-- It commits, so it cannot be pinned: all is qualified.
AS $$
-- Removes what topics no longer have to keep: goes once over all their keys, in small batches.
--
-- topic: NULL for every one that has a retain; with older_than for every one but those that are granted to other
-- operators only; the one that was not pruned for the longest first. older_than: see prune_batch. max_seconds:
-- stop after this long; the next call goes on there. Returns how many commands, turns and whole keys went; done is
-- false when the time was over first.
-- Commits after every batch, so it cannot be called inside a transaction block (2D000).
-- Any number may run at once. Locks and raises what prune_batch does, by whose rights it removes.
DECLARE
    stop_at constant timestamp with time zone := coalesce(
        pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) pg_catalog.make_interval(
            secs => CASE WHEN max_seconds IS NOT NULL THEN greatest(least(max_seconds, 1e9), 0) END), 'infinity');
    one pg_catalog.text;
    began_with pg_catalog.text;
    from_key pg_catalog.text;
    around boolean;
    batch pg_catalog.record;
BEGIN
    commands := 0; turns := 0; forgotten := 0; done := true;
    -- Whatever the session's default; every batch chains its transaction to this one.
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    FOREACH one IN ARRAY CASE WHEN topic IS NULL THEN inturn._topics_to_prune(older_than) ELSE ARRAY[topic] END LOOP
        began_with := coalesce((SELECT p.next_key FROM inturn.prune_pass p WHERE p.topic OPERATOR(pg_catalog.=) one
                                ORDER BY p.pass DESC LIMIT 1), '');
        from_key := began_with;
        around := from_key OPERATOR(pg_catalog.=) '';
        LOOP
            IF pg_catalog.clock_timestamp() OPERATOR(pg_catalog.>=) stop_at THEN
                done := false;
                RETURN;
            END IF;
            -- Its retain was taken away meanwhile, or it was granted to others: the next one.
            EXIT WHEN topic IS NULL AND CASE WHEN older_than IS NULL
                THEN (SELECT t.retain FROM inturn.topic t WHERE t.name OPERATOR(pg_catalog.=) one) IS NULL
                ELSE one OPERATOR(pg_catalog.=) ANY (inturn._hidden_topics()) END;
            SELECT * INTO batch FROM inturn.prune_batch(one, from_key, older_than);
            COMMIT AND CHAIN;
            commands := commands OPERATOR(pg_catalog.+) batch.commands;
            turns := turns OPERATOR(pg_catalog.+) batch.turns;
            forgotten := forgotten OPERATOR(pg_catalog.+) batch.forgotten;
            EXIT WHEN around AND (batch.next_key IS NULL OR began_with OPERATOR(pg_catalog.<>) ''
                                 AND batch.next_key OPERATOR(pg_catalog.<=) began_with COLLATE pg_catalog."C");
            around := around OR batch.next_key IS NULL;
            from_key := coalesce(batch.next_key, '');
        END LOOP;
    END LOOP;
END
$$;
COMMENT ON PROCEDURE inturn.prune IS 'Removes what topics no longer have to keep, in small batches.';
