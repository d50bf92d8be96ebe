-- Returns whether a process may take up a suspect now, a key that was lost (see _lose_lease): 2, alone; 1, in company;
-- NULL: not now. Internal to the claims by lease, which keep it with the key. Takes no locks.
--
-- A key that is lost while it was taken alone has lost its applier; in company it may be any. So a process works on one
-- suspect at a time. Only where more than a hundred wait, as after a fleet has crashed, does it take sixteen together:
-- those that were lost once. One that is lost again is taken alone from then on. So a key that ends its process does so
-- once more, and at most fifteen others are lost a second time with it.
CREATE FUNCTION inturn._find_company(was inturn.key_cursor, applier text) RETURNS integer
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    in_hand integer;
    most_lost integer;
BEGIN
    SELECT count(*), max(m.lost) INTO in_hand, most_lost FROM inturn.key_mark m
    WHERE m.lost > 0 AND m.claimed_by IS NOT NULL AND m.lease_until > clock_timestamp()
      AND inturn._process_of(m.claimed_by) = inturn._process_of(applier);
    IF was.lost = 1 AND was.attempts = 0 AND in_hand < 16 AND most_lost > 1 IS NOT TRUE AND 100 < (
        SELECT count(*) FROM (
            SELECT FROM inturn.key_mark m
            WHERE m.lost = 1 AND m.attempts = 0 AND m.claimed_by IS NULL AND m.held_at IS NULL LIMIT 101) w) THEN
        RETURN 1;
    END IF;
    RETURN CASE WHEN in_hand = 0 THEN greatest(was.lost, 2) END;
END
$$;
COMMENT ON FUNCTION inturn._find_company IS
    'Internal to the claims by lease: whether a process may take up a suspect now, alone or in company.';
