-- The callers' side of a key: the row whose lock a caller holds to commit while it takes the next number.
-- Inserted once and only locked afterwards, so a hot key's row has no dead versions. Only a prune updates it, so that a
-- caller with an older snapshot gets 40001, and not a number from before. A held snapshot keeps those versions:
-- whatever works on a key finds it from the end of its entries (key >= k AND key <= k ORDER BY key DESC LIMIT 1), where
-- the newest one is; so does _find_cursor, and a prune, which goes from the last key to the first. What looks at keys
-- for an operator reads all of them. No CHECKs: see command_log.
CREATE TABLE inturn.key_sequence (
    topic text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    given boolean NOT NULL DEFAULT false,
    arrival boolean NOT NULL DEFAULT false,
    history_seq bigint,
    history_epoch bigint,
    kept_seq bigint,
    PRIMARY KEY (topic, key)
) WITH (fillfactor = 90);
COMMENT ON TABLE inturn.key_sequence IS 'The callers'' side of a key; its row lock orders the callers of the key.';
COMMENT ON COLUMN inturn.key_sequence.given IS
    'Whether the key''s numbers are given by its callers (see topic.numbering).';
COMMENT ON COLUMN inturn.key_sequence.arrival IS
    'Whether its commands are numbered on arrival: callers do not lock it, whoever numbers does.';
COMMENT ON COLUMN inturn.key_sequence.history_seq IS
    'Where its history begins: what has a lower number took effect or was skipped, and was pruned; NULL: nothing '
    'was.';
COMMENT ON COLUMN inturn.key_sequence.history_epoch IS
    'The turn after which it begins, which stays; earlier ones were pruned.';
COMMENT ON COLUMN inturn.key_sequence.kept_seq IS
    'The first command below history_seq that was kept for its idempotency key; NULL: none was.';
