-- Keys that may have to be woken: left by callers at REPEATABLE READ and SERIALIZABLE, whose snapshots may be older
-- than the key's last turn, so that they cannot tell; and by callers who append to a key that waits for a number while
-- somebody else has its ticket in hand. Appliers look at each under the callers' lock, and delete it.
CREATE TABLE inturn.wake_hint (
    topic text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    left_at timestamptz NOT NULL
);
CREATE INDEX wake_hint_left ON inturn.wake_hint (left_at);
-- Of the topics that somebody serves: those of a topic that nobody does stay.
CREATE INDEX wake_hint_topic ON inturn.wake_hint (topic, left_at, key);
-- For publications: without an identity nobody could delete from it once it is published.
ALTER TABLE inturn.wake_hint REPLICA IDENTITY FULL;
COMMENT ON TABLE inturn.wake_hint IS 'Keys that may have to be woken, left by callers who could not tell.';
