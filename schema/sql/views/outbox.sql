-- A way to append for ORMs and loaders that know only tables: INSERT and COPY append, each row as append does.
-- It reads as empty, for a caller may append and nothing more; RETURNING seq gives the new number.
--
-- With session_replication_role = replica its trigger does not fire, and a view has no trigger that always does: the
-- row would be lost without a word. The check of a domain is made all the same. Raises 23514 there.
CREATE DOMAIN inturn._outbox_topic AS text
    CONSTRAINT nothing_is_appended_while_session_replication_role_is_replica
    CHECK (current_setting('session_replication_role') <> 'replica');
COMMENT ON DOMAIN inturn._outbox_topic IS 'Internal to the view outbox: refuses what its trigger would not see.';

CREATE VIEW inturn.outbox AS
SELECT NULL::inturn._outbox_topic AS topic, NULL::text AS key, NULL::text AS name, NULL::jsonb AS payload,
       NULL::text AS idempotency_key, NULL::bigint AS seq
WHERE false;
COMMENT ON VIEW inturn.outbox IS 'INSERT or COPY into it to append commands; it reads as empty.';

CREATE TRIGGER append INSTEAD OF INSERT ON inturn.outbox
    FOR EACH ROW EXECUTE FUNCTION inturn._append_from_outbox();
