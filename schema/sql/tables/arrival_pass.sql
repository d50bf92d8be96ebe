-- What the last pass over a topic's intake saw: see _number_topic, which deletes the newest row and puts another one
-- above it, so that what a held snapshot keeps lies behind it. Unlogged: after a crash, and on a promoted standby, the
-- next pass looks at everything.
CREATE UNLOGGED TABLE inturn.arrival_pass (
    topic text COLLATE "C" NOT NULL,
    pass bigint NOT NULL,
    seen pg_snapshot,
    own xid8[] NOT NULL,
    cluster bigint NOT NULL,
    looked_back_at timestamptz,
    is_full boolean NOT NULL DEFAULT false,
    planned pg_snapshot,
    planned_by xid8,
    from_id bigint,
    to_ids bigint[],
    from_xids bigint[],
    to_xids bigint[],
    PRIMARY KEY (topic, pass)
);
COMMENT ON TABLE inturn.arrival_pass IS 'What the last pass over a topic''s intake saw.';
COMMENT ON COLUMN inturn.arrival_pass.seen IS
    'What was visible to it has a number, or is left behind; NULL: nothing is known.';
COMMENT ON COLUMN inturn.arrival_pass.own IS
    'The transactions of passes since then, which may have appended more afterwards.';
COMMENT ON COLUMN inturn.arrival_pass.looked_back_at IS 'When a pass last looked at what was left behind.';
COMMENT ON COLUMN inturn.arrival_pass.cluster IS 'Of which server: transaction ids of another one mean nothing here.';
COMMENT ON COLUMN inturn.arrival_pass.is_full IS 'Whether it left some of what it saw: then the next one makes a plan.';
COMMENT ON COLUMN inturn.arrival_pass.planned IS
    'What the plan saw by which passes number what has arrived, part by part; NULL: there is none.';
COMMENT ON COLUMN inturn.arrival_pass.planned_by IS 'The transaction that made the plan.';
COMMENT ON COLUMN inturn.arrival_pass.from_id IS
    'Everything of the plan up to this id has a number, or is left behind.';
COMMENT ON COLUMN inturn.arrival_pass.to_ids IS 'The last id of each part that is left.';
COMMENT ON COLUMN inturn.arrival_pass.from_xids IS 'The oldest transaction of each.';
COMMENT ON COLUMN inturn.arrival_pass.to_xids IS 'The newest transaction of each.';
