-- What a SQL target is called with.
CREATE TYPE inturn.command AS (
    topic text,
    key text,
    seq bigint,
    name text,
    payload jsonb,
    created_at timestamptz,
    attempt integer
);
COMMENT ON TYPE inturn.command IS 'One command, as a SQL target gets it; attempt counts from 1.';
