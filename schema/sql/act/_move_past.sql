-- Moves a key past the commands that an operator skips, and requeues it; returns where it stands then. Internal.
--
-- was: the key, as _lock_cursor returned it. Locks what _requeue locks.
CREATE FUNCTION inturn._move_past(was inturn.key_cursor, seq bigint) RETURNS inturn.key_cursor
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    cursor inturn.key_cursor := was;
BEGIN
    cursor.applied_seq := seq; cursor.epoch := was.epoch + 1; cursor.empty_turns := 0;
    cursor.attempts := 0; cursor.last_error := NULL; cursor.failed_at := NULL; cursor.held_at := NULL;
    cursor.waiting_at := NULL; cursor.claimed_by := NULL; cursor.claimed_at := NULL; cursor.lease_until := NULL;
    cursor.lost := 0;
    RETURN inturn._requeue(was, cursor);
END
$$;
COMMENT ON FUNCTION inturn._move_past IS
    'Internal to skip, cancel_rest and fill_gap: moves a key past what is skipped.';
