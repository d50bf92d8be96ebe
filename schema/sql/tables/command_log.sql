-- The commands, append-only. No foreign keys: they would lock the topic's row in every caller's transaction.
-- No CHECKs: every statement would parse them anew, a third of an append. append refuses what does not fit, and
-- nobody else may write here. The part of dead rows at which it is vacuumed, as of turn and ticket, is measured: see
-- docs/reference/benchmarks.md.
CREATE TABLE inturn.command_log (
    topic text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    seq bigint NOT NULL,
    name text COLLATE "C" NOT NULL,
    payload jsonb NOT NULL,
    idempotency_key text COLLATE "C",
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (topic, key, seq)
) WITH (autovacuum_vacuum_scale_factor = 0.05);
CREATE UNIQUE INDEX command_log_idempotency ON inturn.command_log (topic, key, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
COMMENT ON TABLE inturn.command_log IS 'The commands, append-only; per key numbered 1, 2, 3, ... in commit order.';
COMMENT ON COLUMN inturn.command_log.created_at IS
    'When it was appended, under the lock of its key; its commit came later.';
