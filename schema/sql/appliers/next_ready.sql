CREATE FUNCTION inturn.next_ready(topics text[], since timestamptz) RETURNS timestamptz
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
AS $$
-- Returns when the next key of these topics becomes ready, NULL when none is due. Takes no locks.
--
-- since: the database's clock when the applier last looked; somebody else has the keys in hand that were ready before.
BEGIN
    RETURN (SELECT nullif(min(c.ready_at), 'infinity') FROM unnest(topics) t (topic) CROSS JOIN LATERAL (
        SELECT c.ready_at FROM inturn.ticket c
        WHERE c.topic COLLATE "POSIX" = t.topic AND c.ready_at > since ORDER BY c.ready_at LIMIT 1) c);
END
$$;
COMMENT ON FUNCTION inturn.next_ready IS 'When the next key of these topics becomes ready; NULL when none is due.';
