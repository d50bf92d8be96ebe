-- The callers' side of a key: the row whose lock a caller holds to commit while it takes the next number.
-- Updated only when appliers have drained the key, and by every 32nd command that finds it undrained, so a hot
-- key's row gathers few dead versions. No CHECKs: see command_log.
CREATE TABLE inturn.key_sequence (
    topic text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    drained_seq bigint NOT NULL DEFAULT 0,
    known_seq bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (topic, key)
) WITH (fillfactor = 80);
COMMENT ON TABLE inturn.key_sequence IS 'The callers'' side of a key; its row lock orders the callers of the key.';
COMMENT ON COLUMN inturn.key_sequence.drained_seq IS 'Up to here appliers had applied everything when the key last went idle.';
COMMENT ON COLUMN inturn.key_sequence.known_seq IS
    'A number that the key has reached. The search for its last one starts here, or at drained_seq if that is greater: a probe of the log reads every entry of its key on the page.';
