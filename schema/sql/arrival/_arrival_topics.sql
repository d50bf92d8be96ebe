-- Returns the topics among these that number on arrival. Internal to the appliers. Takes no locks.
CREATE FUNCTION inturn._arrival_topics(topics text[]) RETURNS text[]
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
SELECT ARRAY(SELECT t.name FROM inturn.topic t WHERE t.numbering = 'arrival' AND t.name = ANY (topics))
$$;
COMMENT ON FUNCTION inturn._arrival_topics IS 'Internal to the appliers: the topics among some that number on arrival.';
