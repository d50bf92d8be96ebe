-- Returns how many tickets and marks of a topic the planner expects: as good as the last ANALYZE, at no cost. Internal
-- to topic_metrics. Takes no locks.
CREATE FUNCTION inturn._estimate_keys(topic text, OUT tickets bigint, OUT marks bigint)
LANGUAGE plpgsql VOLATILE -- EXPLAIN is for no other
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    plan json;
BEGIN
    FOR plan IN EXPLAIN (FORMAT JSON) SELECT FROM inturn.ticket c WHERE c.topic = _estimate_keys.topic LOOP
        tickets := (plan->0->'Plan'->>'Plan Rows')::numeric::bigint;
    END LOOP;
    FOR plan IN EXPLAIN (FORMAT JSON) SELECT FROM inturn.key_mark m WHERE m.topic = _estimate_keys.topic LOOP
        marks := (plan->0->'Plan'->>'Plan Rows')::numeric::bigint;
    END LOOP;
END
$$;
COMMENT ON FUNCTION inturn._estimate_keys IS
    'Internal to topic_metrics: how many tickets and marks of a topic the planner expects.';
