-- The history, and where an idle key stands: one entry a turn that applied or failed something, and one where a key
-- went idle in another way. Append-only, except for the turn of a lease, which grows while the lease lasts.
-- No CHECKs: see command_log. verify finds what they would refuse.
CREATE TABLE inturn.turn (
    topic text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    epoch bigint NOT NULL,
    from_seq bigint NOT NULL,
    to_seq bigint NOT NULL,
    applied_seq bigint NOT NULL,
    drained boolean NOT NULL,
    outcome text NOT NULL,
    applier text NOT NULL,
    started_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    error text,
    -- A second turn under one epoch cannot be recorded, whatever went wrong before it.
    PRIMARY KEY (topic, key, epoch)
) WITH (autovacuum_vacuum_scale_factor = 0.05);
-- For the rate at which a topic is applied. A turn adds nothing to it, or an entry every thousands of turns.
CREATE INDEX turn_finished ON inturn.turn USING brin (finished_at) WITH (autosummarize = on);
COMMENT ON TABLE inturn.turn IS
    'What each turn did: commands from_seq to to_seq were applied; then, unless the outcome is applied or idle, to_seq '
    '+ 1 failed. retrying, held; skipped: for good; cancelled: with all that was pending; lost: the applier '
    'was. idle: no turn, the key went idle in another way.';
COMMENT ON COLUMN inturn.turn.to_seq IS 'The last command applied; from_seq - 1 when none was.';
COMMENT ON COLUMN inturn.turn.applied_seq IS
    'Where the key stood then: everything up to here had taken effect, or was skipped.';
COMMENT ON COLUMN inturn.turn.drained IS
    'Whether the key went idle. While its last turn says so, the append of the next command has to wake it.';
