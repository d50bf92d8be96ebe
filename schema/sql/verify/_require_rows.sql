-- Raises IT001 for a topic that does not exist and has left no row either: a mistyped name would find nothing, as if
-- all were well. Internal to verify. Takes no locks.
CREATE FUNCTION inturn._require_rows(topic text) RETURNS void
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT inturn._refuse_topic(_require_rows.topic)
WHERE NOT EXISTS (SELECT FROM inturn.topic t WHERE t.name = _require_rows.topic)
  AND NOT EXISTS (SELECT FROM inturn.verify_topics() v (name) WHERE v.name = _require_rows.topic)
$$;
COMMENT ON FUNCTION inturn._require_rows IS
    'Internal to verify: refuses a topic that does not exist and has left no row.';
