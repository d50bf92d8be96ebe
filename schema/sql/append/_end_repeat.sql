-- Finds the repeat that _append_arrival could not see before it inserted; returns its number, or NULL. Internal to
-- _append_arrival.
--
-- new_id: what was inserted into the intake; NULL: nothing was, for the idempotency key is there.
-- An applier may have moved the first command to the log between the look and the insert: then nothing was in the way
-- of the insert, and its row is taken away again. This look comes after the insert, so it sees whatever was moved
-- before that. Only on the snapshot of a caller at REPEATABLE READ or SERIALIZABLE it may be missing: _refuse_unseen
-- finds it there.
-- Raises IT008 for other content, and what _refuse_unseen raises.
CREATE FUNCTION inturn._end_repeat(topic text, key text, name text, payload jsonb, idempotency_key text, new_id bigint)
RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    numbered bigint;
BEGIN
    IF new_id IS NULL THEN
        PERFORM inturn._refuse_reuse(topic, key, NULL, name, payload, idempotency_key);
    END IF;
    numbered := inturn._number_of(topic, key, name, payload, idempotency_key);
    IF numbered IS NOT NULL THEN
        DELETE FROM inturn.intake i
        WHERE i.topic = _end_repeat.topic AND i.key = _end_repeat.key
          AND i.idempotency_key = _end_repeat.idempotency_key
          AND i.id = new_id;
    ELSIF new_id IS NOT NULL AND current_setting('transaction_isolation') <> 'read committed' THEN
        PERFORM inturn._refuse_unseen(topic, key, idempotency_key);
    END IF;
    RETURN numbered;
END
$$;
COMMENT ON FUNCTION inturn._end_repeat IS 'Internal to append: finds a repeat that was moved to the log meanwhile.';
