-- Returns whether a transaction that is still open has appended this number of a key; NULL: its first one. Internal.
--
-- Its row cannot be seen: to insert the same one is to wait for it, which is tried for a moment and undone.
-- Where that cannot be done (read-only, or while an index is rebuilt), and for what cannot be a key, returns false.
CREATE FUNCTION inturn._is_append_open(topic text, key text, seq bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '20ms'
AS $$
BEGIN
    IF topic IS NOT NULL
        AND octet_length(key) BETWEEN 1 AND 512 AND NOT current_setting('transaction_read_only')::boolean THEN
        BEGIN
            -- The INSERT would wait for whoever rebuilds an index of it.
            IF seq IS NULL THEN
                LOCK TABLE inturn.key_sequence IN ROW EXCLUSIVE MODE;
            ELSE
                LOCK TABLE inturn.command_log IN ROW EXCLUSIVE MODE;
            END IF;
        EXCEPTION WHEN lock_not_available THEN
            RETURN false;
        END;
        IF seq IS NULL THEN
            INSERT INTO inturn.key_sequence (topic, key) VALUES (_is_append_open.topic, _is_append_open.key)
            ON CONFLICT DO NOTHING;
        ELSE
            INSERT INTO inturn.command_log (topic, key, seq, name, payload)
            VALUES (_is_append_open.topic, _is_append_open.key, _is_append_open.seq, '?', '{}') ON CONFLICT DO NOTHING;
        END IF;
        RAISE EXCEPTION USING ERRCODE = 'IT000';
    END IF;
    RETURN false;
EXCEPTION
    WHEN SQLSTATE 'IT000' OR serialization_failure THEN RETURN false;
    WHEN lock_not_available THEN RETURN true;
END
$$;
COMMENT ON FUNCTION inturn._is_append_open IS
    'Internal: whether an open transaction has appended this number of a key.';
