-- Numbers what has arrived in the topics among these that number on arrival; returns how many commands. Internal to the
-- appliers.
--
-- OFFSET 0: 15 and 16 would look up each of the topics in the index of those that number on arrival.
-- A topic is numbered until nothing is left of it, or for a fifth of a second: the next pass goes on.
-- Runs as its owner: an applier may neither number commands by hand nor write to the log.
-- The caller commits at once: locks what _number_topic locks, until then.
CREATE FUNCTION inturn._number_arrivals(topics text[]) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    one text;
    pass record;
    stop_at timestamptz;
    numbered bigint := 0;
BEGIN
    FOR one IN SELECT t.name FROM (SELECT t.name FROM inturn.topic t WHERE t.numbering = 'arrival' OFFSET 0) t
               WHERE t.name = ANY (topics) LOOP
        stop_at := clock_timestamp() + interval '200 ms';
        LOOP
            SELECT * INTO pass FROM inturn._number_topic(one, 50000);
            numbered := numbered + pass.numbered;
            EXIT WHEN NOT pass.more OR clock_timestamp() >= stop_at;
        END LOOP;
    END LOOP;
    RETURN numbered;
END
$$;
COMMENT ON FUNCTION inturn._number_arrivals IS 'Internal to the appliers: numbers what has arrived in some topics.';
