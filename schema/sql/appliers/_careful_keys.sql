-- Returns how many keys of each topic an applier takes alone at first: `most` where another applier may have ended
-- because of one of them; otherwise 0. Internal to appliers.
--
-- So it is where one that served the topic is gone and has not said its end (see _end_applier), unless it has left a
-- lease: that is of the key that it took alone. This notes each such end for the topics that are asked for, so that
-- the next applier of them is not careful for it again, and one of its other topics is. Whoever asks announces itself
-- and says where it is careful (see _note_careful) in the same transaction: if it dies, too, the next one is careful
-- again; and whoever starts while it still is so does the same: of several processes that start together each might
-- die of the key. Nobody waits: who asks at the same time sees either the end or who has noted it.
-- The leases of all that are gone are looked for in one walk, and none that was over a minute before its applier was
-- last seen: with a lease that is missed so, the next one is careful for nothing.
-- So it is too where no applier of the topic is known: after a crash of the server none is.
-- applier: who asks; what was announced by that name before is gone. So is what another process of its number has
-- announced through a pooler, where no session tells: one of a container that was started again. most: NULL for what
-- the session's inturn.careful_keys says, if that is a number, or 20.
-- Locks: the rows of those that are gone, skipping locked ones.
CREATE FUNCTION inturn._careful_keys(topics text[], applier text, most integer) RETURNS integer[]
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    process constant text := inturn._process_of(_careful_keys.applier) || ':';
    number constant text := substring(_careful_keys.applier, '^.+:[0-9]+-'); -- without what is random
    setting constant text := substring(current_setting('inturn.careful_keys', true), '^[0-9]{1,9}$');
    -- Before the statement below: who comes between is seen there.
    known constant text[] := (SELECT coalesce(array_agg(DISTINCT t.name), '{}')
                              FROM inturn.applier a, unnest(a.topics) t (name));
    suspected text[];
BEGIN
    WITH entry AS MATERIALIZED (
        SELECT a.applier, a.topics, a.careful, a.seen_at,
               a.applier <> _careful_keys.applier AND inturn._is_alive(a, s.pid, s.state, s.query_start)
                   AND (NOT a.pooled OR starts_with(a.applier, process) OR starts_with(a.applier, number) IS NOT TRUE)
                   AS alive
        FROM inturn.applier a
        LEFT JOIN pg_stat_activity s ON s.pid = a.backend_pid AND s.datname = current_database()
                                       AND coalesce(s.backend_start, a.backend_start) = a.backend_start
        WHERE NOT a.ended AND a.topics && _careful_keys.topics
    ),
    leased AS MATERIALIZED (
        SELECT DISTINCT t.name AS topic, m.claimed_by AS applier
        FROM (SELECT t.name, min(e.seen_at) - interval '1 minute' AS since
              FROM entry e CROSS JOIN unnest(e.topics) t (name) WHERE NOT e.alive GROUP BY t.name) t
        CROSS JOIN LATERAL (
            SELECT m.claimed_by FROM inturn.key_mark m
            WHERE m.topic = t.name AND m.lease_until >= t.since OFFSET 0) m
    ),
    other AS (
        SELECT e.*, EXISTS (SELECT FROM leased l WHERE l.applier = e.applier AND l.topic = ANY (e.topics)) AS leased
        FROM entry e
    ),
    gone AS (
        SELECT o.applier, o.leased FROM other o JOIN inturn.applier a ON a.applier = o.applier
        WHERE NOT o.alive AND NOT a.ended FOR UPDATE OF a SKIP LOCKED
    ),
    noted AS (
        UPDATE inturn.applier a SET (ended, topics) = (
            SELECT g.leased OR l.topics = '{}', CASE WHEN g.leased OR l.topics = '{}' THEN a.topics ELSE l.topics END
            FROM (SELECT ARRAY(
                SELECT t.name FROM unnest(a.topics) WITH ORDINALITY t (name, place)
                WHERE t.name <> ALL (_careful_keys.topics) ORDER BY t.place) AS topics OFFSET 0) l)
        FROM gone g WHERE a.applier = g.applier
    )
    SELECT coalesce(array_agg(DISTINCT t.name), '{}') INTO suspected
    FROM other o, unnest(CASE WHEN o.alive THEN o.careful WHEN NOT o.leased THEN o.topics END) t (name);
    RETURN ARRAY(SELECT CASE WHEN t.name = ANY (suspected) OR t.name <> ALL (known)
                             THEN coalesce(most, setting::integer, 20) ELSE 0 END
                 FROM unnest(topics) WITH ORDINALITY t (name, place) ORDER BY t.place);
END
$$;
COMMENT ON FUNCTION inturn._careful_keys IS
    'Internal to appliers: how many keys of each topic are taken alone at first.';
