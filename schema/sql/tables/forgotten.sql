-- Above every number and epoch of the keys of a topic that were forgotten: see _begin_keys. A row that is updated once
-- a batch of them, and read by the first append to a key.
CREATE TABLE inturn.forgotten (
    topic text COLLATE "C" PRIMARY KEY,
    seq bigint NOT NULL,
    epoch bigint NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE inturn.forgotten IS
    'The highest number and epoch that a forgotten key of the topic had: a new key goes on from there.';
