-- Where the next claim by lease over some topics may begin: see _begin_pass. Clients that claim by lease keep nothing in memory,
-- so it is kept here, and written once a second. Unlogged: after a crash the first claim looks at everything.
CREATE UNLOGGED TABLE inturn.lease_pass (
    topics_hash bigint PRIMARY KEY,
    pass inturn._pass NOT NULL,
    saved_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);
COMMENT ON TABLE inturn.lease_pass IS 'Where the next claim by lease over some topics may begin.';
COMMENT ON COLUMN inturn.lease_pass.topics_hash IS 'Of the topics that are claimed together.';
