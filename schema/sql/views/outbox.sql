-- A door for ORMs and loaders that know only tables: INSERT and COPY append, each row as append does.
-- It reads as empty, for a caller may append and nothing more; RETURNING seq gives the new number.
CREATE VIEW inturn.outbox AS
SELECT NULL::text AS topic, NULL::text AS key, NULL::text AS name, NULL::jsonb AS payload,
       NULL::text AS idempotency_key, NULL::bigint AS seq
WHERE false;
COMMENT ON VIEW inturn.outbox IS 'INSERT or COPY into it to append commands; it reads as empty.';

CREATE TRIGGER append INSTEAD OF INSERT ON inturn.outbox
    FOR EACH ROW EXECUTE FUNCTION inturn._append_from_outbox();
