-- Has the intake go on from a command that came by logical replication, which copies rows and no sequence. Trigger
-- function; it fires for rows that a subscription writes. It does nothing for one that is appended here: by a trigger
-- of a subscription's table, which fires as a replica's does; or once somebody has enabled all triggers of the table,
-- as pg_restore --disable-triggers does at its end. Otherwise passes would wait for that caller.
--
-- What is appended here afterwards was appended later, so it needs a higher id. And what passes have seen here says
-- nothing of the transaction ids of another server: the next one looks at everything.
-- Locks an advisory lock for a moment: a subscription may have several workers.
CREATE FUNCTION inturn._take_replicated() RETURNS trigger
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    ids CONSTANT bigint := hashtextextended('inturn.intake_id_seq', 0);
BEGIN
    IF NEW.xid = pg_current_xact_id() THEN
        RETURN NULL;
    ELSIF NEW.id >= (SELECT s.last_value FROM inturn.intake_id_seq s) THEN
        PERFORM pg_advisory_lock(ids);
        -- So far that the next rows of the subscription find it high enough.
        PERFORM setval('inturn.intake_id_seq', NEW.id + 1000) FROM inturn.intake_id_seq s WHERE s.last_value <= NEW.id;
        PERFORM pg_advisory_unlock(ids);
    END IF;
    DELETE FROM inturn.arrival_pass p WHERE p.topic = NEW.topic;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION inturn._take_replicated IS
    'Trigger of the table intake: goes on from what came by logical replication.';
