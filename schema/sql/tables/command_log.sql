-- The commands, append-only. No foreign keys: they would lock the topic's row in every caller's transaction.
CREATE TABLE inturn.command_log (
    topic text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL
        CHECK (octet_length(key) BETWEEN 1 AND 512),
    seq bigint NOT NULL
        CHECK (seq >= 1),
    name text COLLATE "C" NOT NULL
        CHECK (octet_length(name) BETWEEN 1 AND 128),
    payload jsonb NOT NULL,
    idempotency_key text COLLATE "C"
        CHECK (octet_length(idempotency_key) BETWEEN 1 AND 512),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (topic, key, seq)
);
CREATE UNIQUE INDEX command_log_idempotency ON inturn.command_log (topic, key, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
COMMENT ON TABLE inturn.command_log IS 'The commands, append-only; per key numbered 1, 2, 3, ... in commit order.';
COMMENT ON COLUMN inturn.command_log.created_at IS 'When it was appended, under the lock of its key; its commit came later.';
