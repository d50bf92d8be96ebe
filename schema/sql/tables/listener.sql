-- Whether an applier of the topic sleeps, so that an append need not NOTIFY (which takes a lock over the whole database
-- at commit) while all of them are busy. Unlogged: after a crash nobody counts as asleep.
CREATE UNLOGGED TABLE inturn.listener (
    topic text COLLATE "C" PRIMARY KEY,
    asleep_until timestamptz NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE inturn.listener IS 'Until when some applier of the topic may be asleep; an append notifies only then.';
