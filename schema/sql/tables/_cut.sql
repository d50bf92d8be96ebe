-- Where a key's history is to be cut: see _find_cuts.
CREATE TYPE inturn._cut AS (
    key text COLLATE "C",
    from_seq bigint,
    from_epoch bigint,
    seq bigint,
    epoch bigint,
    cost bigint,
    more boolean,
    kept_from bigint,
    kept_to bigint,
    forgettable boolean
);
COMMENT ON TYPE inturn._cut IS 'Where a key''s history is to be cut.';
