CREATE PROCEDURE inturn.apply(
    topics text[] DEFAULT NULL, max_seconds double precision DEFAULT NULL, max_keys integer DEFAULT 50,
    INOUT commands bigint DEFAULT 0, INOUT failures bigint DEFAULT 0
)
LANGUAGE plpgsql
AS $$
-- Applies the commands of topics with SQL targets until none is ready: the whole applier, for psql and pg_cron.
--
-- topics: NULL for every topic with a SQL target that the session may apply. max_seconds: stop after this long even if some are ready.
-- max_keys: the most keys that share a transaction; keep it under 64, since each that is tried again takes a
-- subtransaction, and more of them slow down every other session. Returns how many commands were applied and how many failed.
-- Announces itself at its start and every few seconds (see list_appliers).
-- Commits after every batch, so it cannot be called inside a transaction block (2D000).
-- Any number may run at once. Locks and raises what apply_batch does.
DECLARE
    stop_at constant timestamptz := coalesce(clock_timestamp() + make_interval(secs => max_seconds), 'infinity');
    applier constant text := format('sql:%s', pg_backend_pid());
    found_any boolean := true;
    pass inturn._pass;
    seconds double precision[] := '{}'; -- how many a key takes, in the order of topics
    per_key double precision;
    careful integer[]; -- how many keys are to be taken alone still, in the order of topics
    left_careful integer;
    place integer;
    announced_at timestamptz := '-infinity';
BEGIN
    commands := 0; failures := 0;
    topics := coalesce(topics, ARRAY(SELECT t.name FROM inturn.topic t WHERE t.target LIKE 'sql:%' AND inturn._is_granted(t.name, 'applier') ORDER BY t.name));
    PERFORM inturn._sql_topic(t.name) FROM unnest(topics) t (name);
    -- Whatever the session's default; every batch chains its transaction to this one.
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    -- Whoever was killed with a key in hand that did it has left that among the first: so many are taken alone.
    careful := array_fill(coalesce(nullif(current_setting('inturn.careful_keys', true), '')::integer, 20), ARRAY[cardinality(topics)]);
    WHILE found_any AND clock_timestamp() < stop_at LOOP
        found_any := false;
        pass := inturn._begin_saved_pass(topics, pass);
        COMMIT AND CHAIN;
        FOR served IN 1 .. cardinality(pass.found) LOOP
            IF announced_at < clock_timestamp() - interval '5 seconds' THEN
                PERFORM inturn.announce_applier(applier, topics, 'database session', NULL,
                                                (SELECT v.version_num FROM inturn.schema_version v));
                COMMIT AND CHAIN;
                announced_at := clock_timestamp();
            END IF;
            place := array_position(topics, pass.found[served]);
            per_key := seconds[place];
            left_careful := careful[place];
            CALL inturn._visit_topic(pass.found[served], pass.starts[served], stop_at, max_keys, applier,
                                    commands, failures, found_any, per_key, left_careful);
            seconds[place] := per_key;
            careful[place] := left_careful;
        END LOOP;
    END LOOP;
END
$$;
COMMENT ON PROCEDURE inturn.apply IS 'Applies the commands of topics with SQL targets until none is ready.';
