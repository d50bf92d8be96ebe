-- What two pending neighbours of a topic become: see merge_rule. topic.merges says whether to look here.
CREATE TABLE inturn.merge_rule (
    topic text COLLATE "C" NOT NULL,
    first_name text COLLATE "C" NOT NULL,
    then_name text COLLATE "C" NOT NULL,
    becomes text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    function_owner text,
    function_owner_id text,
    PRIMARY KEY (topic, first_name, then_name)
);
COMMENT ON TABLE inturn.merge_rule IS 'What two pending commands become that follow each other, by their names.';
COMMENT ON COLUMN inturn.merge_rule.becomes IS
    'nothing; last: the later one alone; sql:SCHEMA.FUNCTION: the first one''s name with the payload that it returns.';
COMMENT ON COLUMN inturn.merge_rule.function_owner IS
    'The owner of the function when the rule was set: once it belongs to somebody else it is not called.';
COMMENT ON COLUMN inturn.merge_rule.function_owner_id IS
    'Which role that is, whatever it is named by now: its server''s identifier and its oid.';
