-- The commands that were skipped, an entry a number: they stay in the log and never take effect. Append-only.
CREATE TABLE inturn.skip (
    topic text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    seq bigint NOT NULL,
    epoch bigint NOT NULL,
    skipped_by text NOT NULL
        CHECK (skipped_by IN ('operator', 'handler', 'attempts')),
    reason text,
    skipped_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- A number is skipped once.
    PRIMARY KEY (topic, key, seq)
);
COMMENT ON TABLE inturn.skip IS 'The commands that were skipped, an entry a number.';
COMMENT ON COLUMN inturn.skip.epoch IS 'The turn, or the operator''s move of the cursor, that skipped it.';
COMMENT ON COLUMN inturn.skip.skipped_by IS
    'operator; handler: it asked for it; attempts: they ran out (see topic.on_exhausted).';
