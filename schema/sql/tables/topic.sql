-- What kinds of command there are, and what applies each. Read by every append and every claim,
-- so nothing that changes often may live here.
CREATE TABLE inturn.topic (
    name text COLLATE "C" PRIMARY KEY
        CHECK (octet_length(name) BETWEEN 1 AND 128),
    target text NOT NULL
        CHECK (target = 'python' OR target LIKE 'sql:_%'),
    max_attempts integer NOT NULL DEFAULT 5
        CHECK (max_attempts >= 1),
    backoff_base interval NOT NULL DEFAULT '1 second'
        CHECK (backoff_base > '0' AND backoff_base <= backoff_cap),
    backoff_cap interval NOT NULL DEFAULT '5 minutes'
        CHECK (backoff_cap <= '7 days'),
    max_payload_bytes integer NOT NULL DEFAULT 1048576
        CHECK (max_payload_bytes BETWEEN 1024 AND 67108864),
    batch_commands integer NOT NULL DEFAULT 100
        CHECK (batch_commands BETWEEN 1 AND 10000),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    on_exhausted text NOT NULL DEFAULT 'hold'
        CHECK (on_exhausted IN ('hold', 'skip', 'cancel-rest')),
    paused_at timestamptz,
    paused_until timestamptz
);
COMMENT ON TABLE inturn.topic IS 'What kinds of command there are, and what applies each.';
COMMENT ON COLUMN inturn.topic.target IS 'python, or sql:SCHEMA.FUNCTION, which takes one inturn.command.';
COMMENT ON COLUMN inturn.topic.max_attempts IS 'A command that failed this often is tried no more: see on_exhausted.';
COMMENT ON COLUMN inturn.topic.backoff_base IS 'The wait before the second attempt; doubled before each further one.';
COMMENT ON COLUMN inturn.topic.max_payload_bytes IS 'The longest payload, as text. At least 1024: append looks here only for longer ones.';
COMMENT ON COLUMN inturn.topic.batch_commands IS 'The most commands of one key in one turn.';
COMMENT ON COLUMN inturn.topic.on_exhausted IS 'What then: hold its key, skip the command, or cancel-rest: skip all that is pending on the key.';
COMMENT ON COLUMN inturn.topic.paused_at IS 'Since when an operator keeps all its keys standing still.';
COMMENT ON COLUMN inturn.topic.paused_until IS 'When they go on by themselves; NULL while paused: when an operator says so.';
