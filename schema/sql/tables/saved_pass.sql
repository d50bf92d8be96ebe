-- Where the next pass over some topics may begin: see _begin_pass. Appliers that keep nothing in memory (clients that
-- claim by lease, and CALL inturn.apply() from one call to the next) find it here, and so does whoever looks at the
-- tickets for an operator or a scrape: see _walk_from. Saved ten times a second at most, as a new row, so that what a
-- held snapshot keeps lies behind the newest one. Unlogged: after a crash the first pass looks at everything.
CREATE UNLOGGED TABLE inturn.saved_pass (
    topics_hash bigint NOT NULL,
    topics text[] NOT NULL,
    saved_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    pass inturn._pass NOT NULL,
    PRIMARY KEY (topics_hash, saved_at)
);
COMMENT ON TABLE inturn.saved_pass IS
    'Where the next pass over some topics may begin, for appliers that keep nothing in memory and whoever only looks.';
COMMENT ON COLUMN inturn.saved_pass.topics IS 'The topics that are served together; the hash is of them.';
