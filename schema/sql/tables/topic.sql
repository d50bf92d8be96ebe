-- What kinds of command there are, and what applies each. Read by every append and every claim, so nothing that changes
-- often may live here.
CREATE TABLE inturn.topic (
    name text COLLATE "C" PRIMARY KEY
        CHECK (octet_length(name) BETWEEN 1 AND 128),
    target text NOT NULL
        CONSTRAINT topic_target_check CHECK (target <> ''),
    max_attempts integer NOT NULL DEFAULT 5
        CHECK (max_attempts BETWEEN 1 AND 1000000),
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
    paused_until timestamptz,
    numbering text NOT NULL DEFAULT 'assigned'
        CHECK (numbering IN ('assigned', 'given', 'arrival')),
    first_seq bigint NOT NULL DEFAULT 1
        CHECK (first_seq BETWEEN 0 AND 1000000000000000000),
    max_ahead bigint NOT NULL DEFAULT 10000
        CHECK (max_ahead BETWEEN 1 AND 1000000000),
    gap_timeout interval
        CHECK (gap_timeout BETWEEN '1 us' AND '365 days'),
    lease interval NOT NULL DEFAULT '30 seconds'
        CHECK (lease BETWEEN '10 ms' AND '1 day'),
    max_in_flight integer NOT NULL DEFAULT 100
        CHECK (max_in_flight BETWEEN 1 AND 10000),
    timeout interval
        CHECK (timeout BETWEEN '1 ms' AND '1 day'),
    max_pending bigint
        CHECK (max_pending BETWEEN 1 AND 1000000000),
    callers text[] COLLATE "C",
    merges boolean NOT NULL DEFAULT false,
    retain interval
        CHECK (retain >= '0'),
    retain_idempotency interval
        CHECK (retain_idempotency >= '0'),
    forget_idle_after interval
        CHECK (forget_idle_after >= retain),
    target_owner text,
    target_owner_id text,
    json_strings boolean NOT NULL DEFAULT false
);
-- For every pass of an applier: mostly there is none.
CREATE INDEX topic_arrival ON inturn.topic (name) WHERE numbering = 'arrival';
COMMENT ON TABLE inturn.topic IS 'What kinds of command there are, and what applies each.';
COMMENT ON COLUMN inturn.topic.target IS
    'python; sql:SCHEMA.FUNCTION, which takes one inturn.command; or the http(s):// address that commands are posted '
    'to.';
COMMENT ON COLUMN inturn.topic.max_attempts IS 'A command that failed this often is not tried again: see on_exhausted.';
COMMENT ON COLUMN inturn.topic.backoff_base IS 'The wait before the second attempt; doubled before each further one.';
COMMENT ON COLUMN inturn.topic.max_payload_bytes IS
    'The longest payload, as text. At least 1024: append looks here only for longer ones.';
COMMENT ON COLUMN inturn.topic.batch_commands IS 'The most commands of one key in one turn.';
COMMENT ON COLUMN inturn.topic.on_exhausted IS
    'What to do when attempts run out: hold the key, skip the command, or cancel-rest (skip everything pending on the '
    'key).';
COMMENT ON COLUMN inturn.topic.paused_at IS 'Since when all its keys are paused by an operator.';
COMMENT ON COLUMN inturn.topic.paused_until IS
    'When they go on by themselves; NULL while paused: when an operator says so.';
COMMENT ON COLUMN inturn.topic.numbering IS
    'Who numbers a key''s commands: assigned, the append does; given, its callers do; arrival, the appliers do, after '
    'the commit.';
COMMENT ON COLUMN inturn.topic.first_seq IS 'The first number of every key, where callers number.';
COMMENT ON COLUMN inturn.topic.max_ahead IS 'How far ahead of the last applied one a given number may be.';
COMMENT ON COLUMN inturn.topic.gap_timeout IS
    'A key that has waited this long for a missing number is held; NULL: never.';
COMMENT ON COLUMN inturn.topic.lease IS
    'How long an applier that works outside the database has a key without renewing its lease.';
COMMENT ON COLUMN inturn.topic.max_in_flight IS 'How many keys one applier works on outside the database at a time.';
COMMENT ON COLUMN inturn.topic.merges IS 'Whether it has merge rules, or had some: see merge_rule.';
COMMENT ON COLUMN inturn.topic.timeout IS 'A command that takes longer has failed; NULL: no limit.';
COMMENT ON COLUMN inturn.topic.max_pending IS
    'The most commands that a key may have pending: append refuses more; NULL: any number.';
COMMENT ON COLUMN inturn.topic.callers IS
    'Who of topic_grant may append, for append reads this row anyway; NULL: every caller.';
COMMENT ON COLUMN inturn.topic.retain IS 'How long after its turn a command is kept; NULL: for ever.';
COMMENT ON COLUMN inturn.topic.retain_idempotency IS
    'How long at least a command with an idempotency key is kept after its append; NULL: for retain.';
COMMENT ON COLUMN inturn.topic.forget_idle_after IS 'A key that has been idle for this long is removed; NULL: never.';
COMMENT ON COLUMN inturn.topic.target_owner IS
    'The owner of the function of a SQL target when it was set: once it belongs to somebody else it is not called.';
COMMENT ON COLUMN inturn.topic.target_owner_id IS
    'Which role that is, whatever it is named by now: its server''s identifier and its oid.';
COMMENT ON COLUMN inturn.topic.json_strings IS
    'Whether a payload may be a string that holds a JSON object or array; append refuses such a one otherwise.';
