-- Refuses the first append to a key on a snapshot, at REPEATABLE READ or SERIALIZABLE, of before the topic last forgot
-- keys.
-- Internal to _begin_keys.
--
-- The key may have been made and forgotten since: then the snapshot shows neither, and an old mark. To insert the
-- mark's row, or to lock it, fails where it is newer than the snapshot. Both are undone at once: a prune never waits
-- for this caller's commit.
-- Raises 40001: run the transaction again.
CREATE FUNCTION inturn._refuse_forgotten(topic text) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO inturn.forgotten (topic, seq, epoch) VALUES (_refuse_forgotten.topic, 0, 0) ON CONFLICT DO NOTHING;
    PERFORM FROM inturn.forgotten f WHERE f.topic = _refuse_forgotten.topic FOR SHARE;
    RAISE EXCEPTION USING ERRCODE = 'IT999';
EXCEPTION
    WHEN SQLSTATE 'IT999' THEN NULL;
END
$$;
COMMENT ON FUNCTION inturn._refuse_forgotten IS
    'Internal to the appends: refuses a snapshot of before the topic last forgot keys.';
