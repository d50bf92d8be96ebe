-- Locks the held or retrying keys that the filters of list_keys find, and returns where each stands.
-- Internal to retry_all and cancel_rest_all.
--
-- of_state: held, retrying, or both with a comma between them, which is what NULL means. A key that somebody else has
-- in hand is left out: it is being tried again, or an operator acts on it.
-- Locks the keys' tickets, skipping locked ones. Raises IT044 for another state, and what list_keys does; IT031 outside
-- READ COMMITTED.
CREATE FUNCTION inturn._lock_failed_keys(of_topic text, of_state text, of_like text, older_than interval, of_error text)
RETURNS SETOF inturn.key_cursor
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    states constant text[] := string_to_array(coalesce(of_state, 'held,retrying'), ',');
    was inturn.key_cursor;
BEGIN
    PERFORM inturn._require_read_committed();
    IF NOT states <@ '{held,retrying}' OR states = '{}' THEN
        RAISE EXCEPTION USING ERRCODE = 'IT044', MESSAGE = format('keys in state %L have no failed command', of_state),
            HINT = 'Give held, retrying, or held,retrying.';
    END IF;
    FOR was IN
        SELECT c.* FROM inturn.list_keys(
            of_topic, array_to_string(states, ','), 1000000, of_like, older_than, of_error => of_error) l
        JOIN inturn.key_cursor c ON c.topic = l.topic AND c.key = l.key
    LOOP
        PERFORM FROM inturn.ticket t
        WHERE t.topic = was.topic AND t.key = was.key AND t.epoch = was.epoch FOR UPDATE SKIP LOCKED;
        CONTINUE WHEN NOT FOUND;
        -- The list was made before the lock was taken.
        SELECT * INTO was FROM inturn._find_cursor(was.topic, was.key) c;
        IF inturn._stored_state(was) = ANY (states)
            AND (of_error IS NULL OR inturn._first_line(was.last_error) LIKE of_error) THEN
            RETURN NEXT was;
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION inturn._lock_failed_keys IS
    'Internal to the operators'' functions: locks the failed keys that filters find.';
