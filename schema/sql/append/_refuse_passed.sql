-- Refuses a number that was skipped since the snapshot of a caller at REPEATABLE READ or SERIALIZABLE was taken,
-- which does not show it. Internal to append.
--
-- It tries to skip the number itself, which is undone. It does not wait for a turn or an operator's cancel_rest
-- that skips it right now: that skips everything pending, also this command. fill_gap, which does not,
-- holds the key's row in key_sequence, as the caller does now.
-- The caller has locked the table: a wait for whoever rebuilds an index of it would be taken for such a turn.
-- Raises 40001: run the transaction again.
CREATE FUNCTION inturn._refuse_passed(topic text, key text, seq bigint) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '1ms'
AS $$
BEGIN
    INSERT INTO inturn.skip (topic, key, seq, epoch, skipped_by)
    VALUES (_refuse_passed.topic, _refuse_passed.key, _refuse_passed.seq, 0, 'operator') ON CONFLICT DO NOTHING;
    RAISE EXCEPTION USING ERRCODE = 'IT999';
EXCEPTION
    WHEN SQLSTATE 'IT999' OR lock_not_available THEN NULL;
END
$$;
COMMENT ON FUNCTION inturn._refuse_passed IS
    'Internal to append: refuses a number that was skipped since the caller''s snapshot.';
