-- Which numbers a turn has read as merged, an entry a number. It counts as far as the turn with its epoch came: see the
-- view merge. What a turn planned and did not reach counts for nothing, and the next one takes it as it stands in the
-- log; but what an applier may have begun as one is not merged anew (see _begun_merges). Append-only, except that a
-- claim deletes what an earlier one left under the same epoch.
CREATE TABLE inturn.merge_plan (
    topic text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    epoch bigint NOT NULL,
    seq bigint NOT NULL,
    from_seq bigint NOT NULL,
    to_seq bigint NOT NULL,
    into_seq bigint,
    rule text NOT NULL,
    name text COLLATE "C",
    payload jsonb,
    PRIMARY KEY (topic, key, seq, epoch)
);
COMMENT ON TABLE inturn.merge_plan IS 'Which numbers a turn has read as merged; what of it took effect is in merge.';
COMMENT ON COLUMN inturn.merge_plan.from_seq IS
    'The first number of those that were merged together; to_seq: the last.';
COMMENT ON COLUMN inturn.merge_plan.into_seq IS
    'The number under which they take effect, to_seq; NULL: they become nothing.';
COMMENT ON COLUMN inturn.merge_plan.name IS
    'Of the entry of to_seq: what the handler gets, with payload, when it is not what is in the log.';
