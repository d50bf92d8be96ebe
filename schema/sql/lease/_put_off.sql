-- Postpones a key for whose commands nothing can be recorded, because inturn's own statements fail on it. Internal.
--
-- It counts no attempt, as that might fail too; the wait doubles from a second up to five minutes. It keeps the error
-- if it can, and a key that has a mark is taken alone from then on, so that it makes no batch fail.
-- state: the SQLSTATE that they failed with. What was lost against another transaction may go well at once: there the
-- wait begins at 10 ms.
-- The caller has locked the key's ticket.
CREATE FUNCTION inturn._put_off(was inturn.key_cursor, error text, state text) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    now constant timestamptz := clock_timestamp();
    first constant interval := CASE WHEN state LIKE '40%' THEN '10 ms' ELSE '1 s' END;
BEGIN
    UPDATE inturn.ticket t SET
        ready_at = now + least(first * power(2, least(t.empty_turns, 15)), interval '5 minutes'),
        empty_turns = t.empty_turns + 1
    WHERE t.topic = was.topic AND t.key = was.key AND t.epoch = was.epoch;
    UPDATE inturn.key_mark m SET
        claimed_by = NULL, claimed_at = NULL, lease_until = NULL, last_error = left(error, 8000), failed_at = now,
        lost = greatest(m.lost, 1)
    WHERE m.topic = was.topic AND m.key = was.key AND m.epoch = was.epoch;
EXCEPTION WHEN OTHERS THEN
    UPDATE inturn.ticket t SET ready_at = now + interval '1 minute'
    WHERE t.topic = was.topic AND t.key = was.key AND t.epoch = was.epoch;
END
$$;
COMMENT ON FUNCTION inturn._put_off IS 'Internal: postpones a key for whose commands nothing can be recorded.';
