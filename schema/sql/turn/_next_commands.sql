-- Returns the next commands of a key in order, up to the first gap. Internal to the claims. Takes no locks.
CREATE FUNCTION inturn._next_commands(topic text, key text, applied_seq bigint, max_commands integer)
RETURNS SETOF inturn.command_log
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
SELECT (c.l).* FROM (
    SELECT l, row_number() OVER (ORDER BY l.seq) AS place FROM inturn.command_log l
    WHERE l.topic = _next_commands.topic AND l.key = _next_commands.key AND l.seq > _next_commands.applied_seq
    ORDER BY l.seq LIMIT max_commands) c
WHERE (c.l).seq = _next_commands.applied_seq + c.place
$$;
COMMENT ON FUNCTION inturn._next_commands IS
    'Internal to the claims: the next commands of a key in order, up to the first gap.';
