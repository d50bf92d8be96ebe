-- Keys for which somebody waits (see wait_state), so that whoever moves one notifies, and nobody notifies for the
-- others.
-- Rows are only inserted, and end by themselves: a session that dies leaves nothing behind that counts, and what a held
-- snapshot keeps of rows that were deleted lies before now in both indexes, where nobody walks. No key but the
-- identity: two sessions that announce the same key do not wait for each other. Unlogged: after a crash waiters
-- announce themselves again.
CREATE UNLOGGED TABLE inturn.waiter (
    id bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    topic text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    until timestamptz NOT NULL
);
CREATE INDEX waiter_topic ON inturn.waiter (topic, until);
CREATE INDEX waiter_key ON inturn.waiter (topic, key, until);
COMMENT ON TABLE inturn.waiter IS 'The keys for which somebody waits.';
COMMENT ON COLUMN inturn.waiter.id IS 'Every hundredth one deletes what is over.';
COMMENT ON COLUMN inturn.waiter.until IS 'Whoever moves the key before this time notifies.';
