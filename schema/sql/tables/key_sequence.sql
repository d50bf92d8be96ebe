-- The callers' side of a key: the row whose lock a caller holds to commit while it takes the next number.
-- Inserted once and only locked afterwards, so a hot key's row has no dead versions. No CHECKs: see command_log.
CREATE TABLE inturn.key_sequence (
    topic text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    given boolean NOT NULL DEFAULT false,
    arrival boolean NOT NULL DEFAULT false,
    PRIMARY KEY (topic, key)
);
COMMENT ON TABLE inturn.key_sequence IS 'The callers'' side of a key; its row lock orders the callers of the key.';
COMMENT ON COLUMN inturn.key_sequence.given IS 'Whether the key''s numbers are given by its callers (see topic.numbering).';
COMMENT ON COLUMN inturn.key_sequence.arrival IS 'Whether its commands are numbered on arrival: callers do not lock it, whoever numbers does.';
