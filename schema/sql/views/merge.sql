-- The merges that took effect: what a turn planned, as far as it came.
CREATE VIEW inturn.merge AS
SELECT p.topic, p.key, p.seq, p.from_seq, p.to_seq, p.into_seq, p.rule, p.epoch, p.name, p.payload,
       t.applier, t.finished_at AS merged_at
FROM inturn.merge_plan p
JOIN inturn.turn t ON t.topic = p.topic AND t.key = p.key AND t.epoch = p.epoch
                     AND p.seq BETWEEN t.from_seq AND t.to_seq;
COMMENT ON VIEW inturn.merge IS
    'The merges that took effect: which numbers became what, by which rule, an entry a number.';
COMMENT ON COLUMN inturn.merge.into_seq IS 'The number under which it took effect; NULL: it became nothing.';
COMMENT ON COLUMN inturn.merge.epoch IS 'The turn that did it.';
