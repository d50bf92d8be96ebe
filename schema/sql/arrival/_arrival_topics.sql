-- Returns the topics among these that number on arrival. Internal to the appliers. Takes no locks.
-- OFFSET 0: see _number_arrivals.
CREATE FUNCTION inturn._arrival_topics(topics text[]) RETURNS text[]
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
SELECT ARRAY(SELECT t.name FROM (SELECT t.name FROM inturn.topic t WHERE t.numbering = 'arrival' OFFSET 0) t
             WHERE t.name = ANY (topics))
$$;
COMMENT ON FUNCTION inturn._arrival_topics IS 'Internal to the appliers: the topics among some that number on arrival.';
