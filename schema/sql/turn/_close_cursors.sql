-- Closes the cursors WITH HOLD that commands have left open. Internal to what ends a turn, before its commit.
--
-- The commit would read each of them to its end, for as long as that takes, and fail by what it raises; and the next
-- command would find it open. What the session had before this transaction stays, or before the CALL that it is of.
-- Takes no locks.
CREATE FUNCTION inturn._close_cursors() RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    cursor_name text;
BEGIN
    FOR cursor_name IN
        SELECT c.name FROM pg_cursors c
        WHERE c.is_holdable AND c.creation_time >= least(transaction_timestamp(), statement_timestamp())
    LOOP
        EXECUTE format('CLOSE %I', cursor_name);
    END LOOP;
END
$$;
COMMENT ON FUNCTION inturn._close_cursors IS 'Internal: closes the cursors WITH HOLD that commands have left open.';
