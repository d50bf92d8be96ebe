-- The keys on which commands have arrived that have no number yet: the one answer to whether a key has any.
-- Read for a key, or for the keys of a topic, it reads all that is in the topic's intake: an index by key would cost
-- every caller.
CREATE VIEW inturn.arrived_key AS
SELECT i.topic, i.key, count(*) AS arrived, min(i.created_at) AS arrived_at,
       (array_agg(i.left_because ORDER BY i.id))[1] AS left_because
FROM inturn.intake i GROUP BY i.topic, i.key;
COMMENT ON VIEW inturn.arrived_key IS 'The keys on which commands have arrived that have no number yet.';
COMMENT ON COLUMN inturn.arrived_key.arrived IS 'How many.';
COMMENT ON COLUMN inturn.arrived_key.arrived_at IS 'When the first of them was appended.';
COMMENT ON COLUMN inturn.arrived_key.left_because IS 'Why a pass that saw the first did not number it.';
