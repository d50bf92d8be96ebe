-- Returns the query by which list_keys reads the keys that are idle, or not known yet, but for what has arrived on them
-- and has no number. Internal to list_keys: see _keys_query, whose columns and parameters it has.
CREATE FUNCTION inturn._arrived_query(deep boolean, hidden text[]) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT format($query$
SELECT (ROW(t.name, i.key, i.applied_seq, NULL, i.epoch, 0, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
            0)::inturn.key_cursor).*,
       'arrived' AS state, i.arrived, i.arrived_at, i.arrived_at AS at
FROM inturn.topic t CROSS JOIN LATERAL (
    SELECT i.*, coalesce(c.applied_seq, 0) AS applied_seq, coalesce(c.epoch, 0) AS epoch
    FROM inturn.arrived_key i LEFT JOIN LATERAL inturn._find_cursor(t.name, i.key) c ON true
    WHERE i.topic = t.name AND ($2 IS NULL OR i.key LIKE $2)
      AND ($3 IS NULL OR i.arrived >= $3) AND ($4 IS NULL OR i.arrived_at <= $4) AND $6 IS NULL%s
      AND inturn._state_at(c, $7) = 'idle'
    ORDER BY i.arrived_at, i.key %s) i
WHERE t.numbering = 'arrival' AND ($1 IS NULL OR t.name = $1) AND t.name <> ALL (%L::text[])
$query$, CASE WHEN deep THEN ' AND i.arrived > 32' END, CASE WHEN NOT deep THEN 'LIMIT $5' END, hidden)
$$;
COMMENT ON FUNCTION inturn._arrived_query IS
    'Internal to list_keys: the query that reads the keys that have no number yet.';
