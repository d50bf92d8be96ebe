-- The history: one entry a turn that applied or failed something. Append-only.
CREATE TABLE inturn.turn (
    topic text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    epoch bigint NOT NULL,
    from_seq bigint NOT NULL,
    to_seq bigint NOT NULL,
    outcome text NOT NULL
        CHECK (outcome IN ('applied', 'retrying', 'held', 'skipped', 'cancelled')),
    applier text NOT NULL,
    started_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    error text,
    -- A second turn under one epoch cannot be recorded, whatever went wrong before it.
    PRIMARY KEY (topic, key, epoch),
    CHECK (to_seq >= from_seq - 1),
    CHECK ((outcome = 'applied') = (error IS NULL))
);
-- For the rate at which a topic is applied. A turn adds nothing to it, or an entry every thousands of turns.
CREATE INDEX turn_finished ON inturn.turn USING brin (finished_at) WITH (autosummarize = on);
COMMENT ON TABLE inturn.turn IS 'What each turn did: commands from_seq to to_seq were applied; then, unless the outcome is applied, to_seq + 1 failed. skipped: it was passed over; cancelled: with all that was pending.';
COMMENT ON COLUMN inturn.turn.to_seq IS 'The last command applied; from_seq - 1 when none was.';
