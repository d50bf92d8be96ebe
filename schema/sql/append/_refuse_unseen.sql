-- Refuses an idempotency key that the snapshot of a caller at REPEATABLE READ or SERIALIZABLE does not show, because it
-- came to the log after that snapshot was taken. Internal to _end_repeat.
--
-- It tries to log a command with the key itself, which is undone. Nobody else can be about to log one: the caller's row
-- in the intake has the key, and no other transaction can insert or move a row with it before this one ends.
-- Raises 40001: run the transaction again.
CREATE FUNCTION inturn._refuse_unseen(topic text, key text, idempotency_key text) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- The number is one that no command has.
    INSERT INTO inturn.command_log (topic, key, seq, name, payload, idempotency_key)
    VALUES (_refuse_unseen.topic, _refuse_unseen.key, -1, '', '{}', _refuse_unseen.idempotency_key)
    ON CONFLICT DO NOTHING;
    RAISE EXCEPTION USING ERRCODE = 'IT999';
EXCEPTION
    WHEN SQLSTATE 'IT999' THEN NULL;
END
$$;
COMMENT ON FUNCTION inturn._refuse_unseen IS
    'Internal to append: refuses an idempotency key that was logged since the caller''s snapshot.';
