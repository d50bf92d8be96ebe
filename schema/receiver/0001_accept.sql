-- The guard of a receiver's own database: which command of a key has taken effect here. It needs nothing else of
-- inturn.
-- Its revision: a view of a constant, which every copy of the schema has.
CREATE VIEW inturn.receiver_version AS SELECT '0001'::text AS version_num;

-- The role belongs to the whole cluster: where it exists already it is kept.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'inturn_receiver') THEN
        CREATE ROLE inturn_receiver NOLOGIN;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL; -- made by an install into another database at this moment
END
$$;

CREATE TABLE inturn.accepted (
    topic text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    seq bigint NOT NULL,
    epoch bigint NOT NULL,
    accepted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (topic, key)
) WITH (fillfactor = 80);
COMMENT ON TABLE inturn.accepted IS 'The receiver''s side of a key: the last command that took effect here.';
COMMENT ON COLUMN inturn.accepted.seq IS 'Everything up to here has taken effect, or never will.';
COMMENT ON COLUMN inturn.accepted.epoch IS 'The turn that brought it: nothing of an earlier turn is accepted after it.';
COMMENT ON COLUMN inturn.accepted.accepted_at IS 'When it was accepted.';

-- Says whether a command is to take effect now: true once for every number of a key, and only in order.
--
-- Call it in the transaction of the effect: they commit together, or neither does. False: answer that it is done
-- already. False for a number that is not above the last accepted one: it is a repeat, or late. A number further above
-- than one is in order:
-- an applier sends the next only after the one before was accepted, and never sends what an operator skipped or what
-- was merged into another command. False also for an epoch below that of the last accepted number, whatever the number:
-- whoever sends it lost the key to another applier, and what an operator has decided since (skip, amend) must not be
-- undercut by it. An applier that reports every command before it sends the next is stopped by the number alone; the
-- epoch is for those that send ahead.
-- A repeat leaves the epoch as it is: the number is signed in what an applier posts, the epoch is not, and whoever
-- posts a captured request again must not be able to close the key with a high one.
-- Locks the key's row until the end of the transaction, also where the answer is false: another request of the key
-- waits, and is answered by what became of this one. Raises 23502 for NULL; at REPEATABLE READ and above 40001 where
-- the snapshot is older than the last accepted number.
CREATE FUNCTION inturn.accept(topic text, key text, seq bigint, epoch bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO inturn.accepted AS last (topic, key, seq, epoch)
    VALUES (accept.topic, accept.key, accept.seq, accept.epoch)
    ON CONFLICT ON CONSTRAINT accepted_pkey DO UPDATE
    SET seq = EXCLUDED.seq, epoch = EXCLUDED.epoch, accepted_at = EXCLUDED.accepted_at
    WHERE EXCLUDED.seq > last.seq AND EXCLUDED.epoch >= last.epoch;
    RETURN FOUND;
END
$$;
COMMENT ON FUNCTION inturn.accept IS
    'Says whether a command is to take effect now, in the transaction of its effect: once a number, in order.';

REVOKE ALL ON SCHEMA inturn FROM PUBLIC;
REVOKE ALL ON inturn.receiver_version, inturn.accepted FROM PUBLIC;
REVOKE ALL ON FUNCTION inturn.accept FROM PUBLIC;
-- Nor is anything for those to whom the owner lets have all that it makes (ALTER DEFAULT PRIVILEGES).
DO $$
DECLARE
    given record;
BEGIN
    FOR given IN
        WITH accepted AS (
            SELECT c.* FROM pg_class c WHERE c.oid IN ('inturn.accepted'::regclass, 'inturn.receiver_version'::regclass)
        ), has AS (
            SELECT format('ALL ON TABLE %s', c.oid::regclass) AS what, c.relowner AS owner, g.*
            FROM accepted c, aclexplode(c.relacl) g
            UNION ALL
            SELECT format('ALL ON ROUTINE %s', p.oid::regprocedure), p.proowner, g.*
            FROM pg_proc p, aclexplode(p.proacl) g WHERE p.oid = 'inturn.accept'::regproc
            UNION ALL
            SELECT 'CREATE ON SCHEMA inturn', n.nspowner, g.* FROM pg_namespace n, aclexplode(n.nspacl) g
            WHERE n.oid IN (SELECT c.relnamespace FROM accepted c) AND g.privilege_type = 'CREATE'
        )
        SELECT DISTINCT h.what, h.grantee::regrole AS grantee FROM has h WHERE h.grantee NOT IN (0, h.owner)
    LOOP
        EXECUTE format('REVOKE %s FROM %s', given.what, given.grantee);
    END LOOP;
END
$$;
GRANT USAGE ON SCHEMA inturn TO inturn_receiver;
GRANT EXECUTE ON FUNCTION inturn.accept(text, text, bigint, bigint) TO inturn_receiver;
