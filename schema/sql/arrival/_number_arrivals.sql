-- Numbers what has arrived in those of some topics that number on arrival; returns how many commands. Internal to the appliers.
--
-- Runs as its owner: an applier may neither number commands by hand nor write to the log.
-- The caller commits at once: locks what _number_topic locks, until then.
CREATE FUNCTION inturn._number_arrivals(topics text[]) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    topic text;
    numbered bigint := 0;
BEGIN
    FOR topic IN SELECT t.name FROM inturn.topic t WHERE t.numbering = 'arrival' AND t.name = ANY (topics) LOOP
        numbered := numbered + inturn._number_topic(topic, 10000);
    END LOOP;
    RETURN numbered;
END
$$;
COMMENT ON FUNCTION inturn._number_arrivals IS 'Internal to the appliers: numbers what has arrived in some topics.';
