-- Locks a key that was claimed alone, and returns how many of its commands its turn takes at the most. Internal to the
-- appliers.
--
-- One, where it is tried again, or an applier was lost with it, or no further one is pending: then whatever ends the
-- turn was that command, even if nobody is left to say so. Locks and raises what _hold_lease does.
CREATE FUNCTION inturn._hold_alone(topic text, key text, epoch bigint) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    was constant inturn.key_cursor := inturn._hold_lease(topic, key, epoch);
BEGIN
    IF was.attempts > 0 OR was.lost > 0 THEN
        RETURN 1;
    END IF;
    RETURN (
        SELECT CASE WHEN EXISTS (SELECT FROM inturn._next_commands(was.topic, was.key, was.applied_seq, 2) OFFSET 1)
                    THEN least(t.batch_commands, 50) ELSE 1 END
        FROM inturn.topic t WHERE t.name = was.topic);
END
$$;
COMMENT ON FUNCTION inturn._hold_alone IS 'Internal to the appliers: locks a key that was claimed alone.';
