-- The callers' side of a key: the row whose lock a caller holds to commit while it takes the next number.
-- Updated only when appliers have drained the key, so a hot key's row gathers no dead versions.
CREATE TABLE inturn.key_sequence (
    topic text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    drained_seq bigint NOT NULL DEFAULT 0
        CHECK (drained_seq >= 0),
    PRIMARY KEY (topic, key)
) WITH (fillfactor = 80);
COMMENT ON TABLE inturn.key_sequence IS 'The callers'' side of a key; its row lock orders the callers of the key.';
COMMENT ON COLUMN inturn.key_sequence.drained_seq IS 'Up to here appliers had applied everything when the key last went idle.';
