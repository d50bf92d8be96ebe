-- Where the next pass over some topics may begin: see _begin_pass. Appliers that keep nothing in memory (clients that
-- claim by lease, and CALL inturn.apply() from one call to the next) find it here. Saved ten times a second at most, as
-- a new row, so that what a held snapshot keeps lies behind the newest one. Unlogged: after a crash the first pass
-- looks at everything.
CREATE UNLOGGED TABLE inturn.saved_pass (
    topics_hash bigint NOT NULL,
    saved_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    pass inturn._pass NOT NULL,
    PRIMARY KEY (topics_hash, saved_at)
);
COMMENT ON TABLE inturn.saved_pass IS
    'Where the next pass over some topics may begin, for appliers that keep nothing in memory.';
COMMENT ON COLUMN inturn.saved_pass.topics_hash IS 'Of the topics that are served together.';
