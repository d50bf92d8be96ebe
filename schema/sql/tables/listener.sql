-- Whether an applier of the topic sleeps, so that an append need not NOTIFY (which takes a lock over the whole database
-- at commit) while all of them are busy. Unlogged: after a crash nobody counts as asleep.
-- One row for each topic (two where two appliers met at its first announcement), which rises in its index with each
-- announcement: what a held snapshot keeps of it lies before now, where no append walks.
CREATE UNLOGGED TABLE inturn.listener (
    topic text COLLATE "C" NOT NULL,
    asleep_until timestamptz NOT NULL
);
CREATE INDEX listener_topic ON inturn.listener (topic, asleep_until);
COMMENT ON TABLE inturn.listener IS 'Until when some applier of the topic may be asleep; an append notifies only then.';
