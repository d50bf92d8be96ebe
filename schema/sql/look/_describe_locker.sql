-- Describes in a few words who has locked a row: a session, or a prepared transaction, which none has any more; NULL:
-- nobody has, or it cannot be seen (see _lock_holder). Internal. Takes no locks.
--
-- locker: the row's xmax.
CREATE FUNCTION inturn._describe_locker(locker xid, relation regclass) RETURNS text
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT coalesce(
    inturn._describe_backend(inturn._lock_holder(locker, relation)),
    (SELECT format('the prepared transaction %L of %s, since %s', x.gid, x.owner,
                   to_char(x.prepared AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'))
     FROM pg_prepared_xacts x WHERE x.transaction = locker AND x.database = current_database()))
$$;
COMMENT ON FUNCTION inturn._describe_locker IS 'Internal: who has locked a row, in a few words.';
