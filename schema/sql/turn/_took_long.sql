-- Returns whether one of these keys is being tried again and its last attempt took at least 100 ms: those that share
-- its transaction would wait as long for their commit. Internal to the appliers.
--
-- epochs, attempts: as the claim returned them. Of a turn that failed, started_at is when the failed command was begun,
-- or as if what came after it had come before: so it says how long that took, and nothing of what shared its
-- transaction. Of a topic that is granted to other appliers only it says no. Takes no locks.
CREATE FUNCTION inturn._took_long(topic text, keys text[], epochs bigint[], attempts integer[]) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
SELECT EXISTS (
    SELECT FROM ROWS FROM (unnest(keys), unnest(epochs), unnest(attempts)) k (key, epoch, attempts)
    CROSS JOIN LATERAL (
        SELECT u.outcome, u.finished_at - u.started_at AS took FROM inturn.turn u
        WHERE u.topic = _took_long.topic AND u.key = k.key AND u.epoch = k.epoch - 1 AND k.attempts > 0 OFFSET 0) u
    WHERE u.outcome = 'retrying' AND u.took >= interval '100 ms')
    AND inturn._is_granted(_took_long.topic, 'applier')
$$;
COMMENT ON FUNCTION inturn._took_long IS
    'Internal to the appliers: whether the last attempt of one of these keys took long.';
