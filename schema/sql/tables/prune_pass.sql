-- How far the last prune of a topic came, so that the next one goes on there: a row above the last one, so that what a
-- held snapshot keeps lies behind it. Unlogged: after a crash the next one begins anew.
CREATE UNLOGGED TABLE inturn.prune_pass (
    topic text COLLATE "C" NOT NULL,
    pass bigint NOT NULL,
    next_key text COLLATE "C",
    began_at timestamptz NOT NULL,
    PRIMARY KEY (topic, pass)
);
COMMENT ON TABLE inturn.prune_pass IS 'How far the last prune of a topic came.';
COMMENT ON COLUMN inturn.prune_pass.next_key IS
    'The keys before it are those that it has not looked at; NULL: it has looked at all.';
COMMENT ON COLUMN inturn.prune_pass.began_at IS 'When it began, at the last key.';
