-- Returns the advisory lock of an applier's process: see _lock_process. Internal to the claims by lease. Takes none.
CREATE FUNCTION inturn._process_lock(applier text) RETURNS bigint
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT hashtextextended('inturn.process ' || inturn._process_of(applier), 0)
$$;
COMMENT ON FUNCTION inturn._process_lock IS
    'Internal to the claims by lease: the advisory lock of an applier''s process.';
