-- Commands of topics with numbering arrival that have no number yet: an applier moves them to command_log. Callers
-- insert, and take no lock on the key. No CHECKs: see command_log.
-- The id is taken when the append runs, from a sequence without cache: an append that began after another one's commit
-- has the higher id. xid finds what came to be seen since the last pass, without walking over what was moved before:
-- see _number_topic.
CREATE TABLE inturn.intake (
    topic text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    id bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    name text COLLATE "C" NOT NULL,
    payload jsonb NOT NULL,
    idempotency_key text COLLATE "C",
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    left_because text,
    PRIMARY KEY (topic, xid, id)
);
CREATE UNIQUE INDEX intake_idempotency ON inturn.intake (topic, key, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX intake_left_behind ON inturn.intake (topic, key, id) WHERE left_because IS NOT NULL;
CREATE TRIGGER take_replicated AFTER INSERT ON inturn.intake
    FOR EACH ROW EXECUTE FUNCTION inturn._take_replicated();
ALTER TABLE inturn.intake ENABLE REPLICA TRIGGER take_replicated;
COMMENT ON TABLE inturn.intake IS 'Commands that have arrived and have no number yet.';
COMMENT ON COLUMN inturn.intake.id IS 'The order of arrival, over all keys.';
COMMENT ON COLUMN inturn.intake.xid IS 'The transaction that appended it.';
COMMENT ON COLUMN inturn.intake.left_because IS
    'Why a pass that saw it did not number it: locked, or what went wrong with its key.';
