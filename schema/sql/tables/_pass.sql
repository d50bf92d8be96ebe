-- Where an applier's next pass over the tickets of its topics may begin: see _begin_pass. An applier keeps it in
-- memory, from one pass to the next, or in saved_pass.
CREATE TYPE inturn._pass AS (
    found text[],
    hands timestamptz[],
    due timestamptz,
    looked_at timestamptz,
    safe_at timestamptz,
    hint_at timestamptz,
    next_at timestamptz,
    next_xid xid8,
    whole_at timestamptz,
    starts timestamptz[],
    seen_to timestamptz,
    walk_at timestamptz,
    walked_from timestamptz
);
COMMENT ON TYPE inturn._pass IS 'Where an applier''s next pass over the tickets of its topics may begin.';
