-- The appliers, as each announces itself every few seconds. Unlogged: after a crash they announce themselves again.
CREATE UNLOGGED TABLE inturn.applier (
    applier text COLLATE "C" PRIMARY KEY,
    topics text[] NOT NULL,
    host text NOT NULL,
    pid integer,
    backend_pid integer NOT NULL,
    backend_start timestamptz NOT NULL,
    revision text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    pooled boolean NOT NULL DEFAULT false,
    down jsonb NOT NULL DEFAULT '{}',
    abandoned integer NOT NULL DEFAULT 0,
    ended boolean NOT NULL DEFAULT false,
    careful text[] NOT NULL DEFAULT '{}'
) WITH (fillfactor = 50);
COMMENT ON TABLE inturn.applier IS 'Who applies what, as each applier said of itself when it was last seen.';
COMMENT ON COLUMN inturn.applier.applier IS 'The applier, as in turn.';
COMMENT ON COLUMN inturn.applier.pid IS 'Its process on host; NULL: it is a session of the database.';
COMMENT ON COLUMN inturn.applier.backend_start IS
    'With backend_pid: which session of the database it uses, in pg_stat_activity.';
COMMENT ON COLUMN inturn.applier.revision IS 'The revision of the schema that it serves.';
COMMENT ON COLUMN inturn.applier.pooled IS 'It goes through a pooler: the session may be another one by now.';
COMMENT ON COLUMN inturn.applier.down IS
    'The topics whose breaker is open in its process: topic to since, key (the last one tried) and error.';
COMMENT ON COLUMN inturn.applier.abandoned IS
    'How many handlers its process has abandoned, because they did not return.';
COMMENT ON COLUMN inturn.applier.careful IS
    'The topics of which it takes the first keys alone still, as another applier may have died of one.';
COMMENT ON COLUMN inturn.applier.ended IS 'It has said its end, or the next call of apply has noted that it is gone.';
