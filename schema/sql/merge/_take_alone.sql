-- Locks a key that was claimed alone, and returns its next commands as they are to be taken, with how far it stands and
-- which attempt this is. Internal to the appliers for handlers.
--
-- Without a command there is one row without a seq. No row: what it has could not be merged, and the lease has ended.
-- All payloads together have at most _max_claim_octets, but the first command comes however long it is.
-- Runs as the applier: so do the functions that merge. Locks and raises what _hold_lease and _plan_alone do.
CREATE FUNCTION inturn._take_alone(topic text, key text, epoch bigint, max_commands integer)
RETURNS TABLE (applied_seq bigint, attempt integer, seq bigint, name text, payload jsonb, created_at timestamptz)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    was constant inturn.key_cursor := inturn._hold_lease(topic, key, epoch);
    settings constant inturn.topic := inturn._settings_of(topic);
    most integer;
BEGIN
    most := CASE WHEN was.attempts > 0 OR was.lost > 0 THEN 1 ELSE least(settings.batch_commands, max_commands) END;
    IF NOT inturn._plan_alone(settings, was, most) THEN
        RETURN;
    END IF;
    RETURN QUERY
    SELECT was.applied_seq, was.attempts + 1, l.seq, l.name, l.payload, l.created_at
    FROM (SELECT 1) one LEFT JOIN LATERAL (
        SELECT n.seq, n.name, n.payload, n.created_at, row_number() OVER o AS place,
               sum(octet_length(n.payload::text)) OVER o AS octets
        FROM inturn._turn_commands(was.topic, ARRAY[was.key], ARRAY[was.epoch], ARRAY[was.applied_seq], most) n
        WINDOW o AS (ORDER BY n.seq)) l
    ON l.place = 1 OR coalesce(l.octets, 0) <= inturn._max_claim_octets()
    ORDER BY l.seq;
END
$$;
COMMENT ON FUNCTION inturn._take_alone IS
    'Internal to the appliers: locks a key that was claimed alone, and returns its next commands.';
