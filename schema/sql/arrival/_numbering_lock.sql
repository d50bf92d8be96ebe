-- Returns the advisory lock of whoever numbers what has arrived in a topic. Internal to _number_topic and why. Takes no
-- locks.
CREATE FUNCTION inturn._numbering_lock(topic text) RETURNS bigint
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT hashtextextended('inturn.numbers ' || topic, 0)
$$;
COMMENT ON FUNCTION inturn._numbering_lock IS
    'Internal: the advisory lock of whoever numbers what has arrived in a topic.';
