CREATE PROCEDURE inturn.apply(
    topics text[] DEFAULT NULL, max_seconds double precision DEFAULT NULL, max_keys integer DEFAULT 50,
    INOUT commands bigint DEFAULT 0, INOUT failures bigint DEFAULT 0
)
LANGUAGE plpgsql
-- It commits, so it cannot be pinned: all is qualified.
AS $$
-- Applies the commands of topics with SQL targets until none is ready: the whole applier, for psql and pg_cron.
--
-- topics: NULL for every topic with a SQL target that the session may apply. max_seconds: stop after this long even if
-- some are ready; stops before the session's statement_timeout too, see _leave_at.
-- max_keys: the most keys that share a transaction; keep it under 64, since each that is tried again takes a
-- subtransaction, and more of them slow down every other session. Returns how many commands were applied and how many
-- failed.
-- Announces itself at its start and every few seconds (see list_appliers). Where another applier has died, or was ended
-- by an error, takes the first keys alone (see _careful_keys): the one that it died of is among them.
-- Commits after every batch, so it cannot be called inside a transaction block (2D000).
-- Leaves a topic out, with a warning, whose target, or a function that merges its commands, belongs to somebody else
-- than when it was set. Puts the session's settings back after every batch, see _keep_settings; ends where it cannot.
-- Any number may run at once. Locks and raises what apply_batch does.
DECLARE
    stop_at timestamp with time zone := coalesce(
        pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) pg_catalog.make_interval(
            secs => CASE WHEN max_seconds IS NOT NULL THEN greatest(least(max_seconds, 1e9), 0) END), 'infinity');
    applier constant pg_catalog.text := pg_catalog.format('sql:%s', pg_catalog.pg_backend_pid());
    found_any boolean := true;
    pass inturn._pass;
    seconds double precision[] := '{}'; -- how many a key takes, in the order of topics
    per_key double precision;
    careful integer[]; -- how many keys are to be taken alone still, in the order of topics
    left_careful integer;
    left_out pg_catalog.text[] := '{}'; -- topics whose target is refused
    place integer;
    failing pg_catalog.jsonb := '{}'; -- see _judge_outages
    settings constant pg_catalog.text[] := inturn._keep_settings(NULL);
    announced_at timestamp with time zone := '-infinity';
BEGIN
    commands := 0; failures := 0;
    PERFORM inturn._warn_superuser();
    topics := inturn._sql_topics(topics);
    stop_at := least(stop_at, inturn._leave_at(topics));
    -- Whatever the session's default; every batch chains its transaction to this one.
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    WHILE found_any AND pg_catalog.clock_timestamp() OPERATOR(pg_catalog.<) stop_at LOOP
        found_any := false;
        pass := inturn._begin_saved_pass(topics, pass);
        COMMIT AND CHAIN;
        FOR served IN 1 .. pg_catalog.cardinality(pass.found) LOOP
            IF inturn._leave_out(inturn._sql_topic(pass.found[served]), left_out) THEN
                left_out := pg_catalog.array_append(left_out, pass.found[served]);
                CONTINUE;
            END IF;
            careful := coalesce(careful, inturn._careful_keys(topics, applier, NULL));
            IF announced_at OPERATOR(pg_catalog.<) (
                pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) interval '5 seconds') THEN
                PERFORM inturn.announce_applier(applier, topics, 'database session', NULL,
                                                (SELECT v.version_num FROM inturn.schema_version v));
                PERFORM inturn._note_careful(applier, topics, careful);
                COMMIT AND CHAIN;
                announced_at := pg_catalog.clock_timestamp();
            END IF;
            place := pg_catalog.array_position(topics, pass.found[served]);
            per_key := seconds[place];
            left_careful := careful[place];
            CALL inturn._visit_topic(pass.found[served], pass.starts[served], stop_at, max_keys, applier, settings,
                                    commands, failures, found_any, per_key, left_careful, failing);
            seconds[place] := per_key;
            careful[place] := left_careful;
        END LOOP;
    END LOOP;
    PERFORM inturn._end_applier(applier) WHERE careful IS NOT NULL; -- else one before it is still to be looked at
END
$$;
COMMENT ON PROCEDURE inturn.apply IS 'Applies the commands of topics with SQL targets until none is ready.';
