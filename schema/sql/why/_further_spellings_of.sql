-- Returns spellings of a mistyped text: with one character added, or another in the place of one.
-- Internal to why.
--
-- Of characters as keys have them. Thousands for a long text: one that is longer than 64 characters has none.
CREATE FUNCTION inturn._further_spellings_of(typed text) RETURNS SETOF text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT overlay(typed PLACING c.one FROM i FOR n.replaced)
FROM generate_series(1, length(typed) + 1) i
CROSS JOIN (VALUES (0), (1)) n (replaced)
CROSS JOIN string_to_table('abcdefghijklmnopqrstuvwxyz0123456789-_:./@#+'
                           || CASE WHEN typed <> lower(typed) THEN 'ABCDEFGHIJKLMNOPQRSTUVWXYZ' ELSE '' END,
                           NULL) c (one)
WHERE length(typed) BETWEEN 2 AND 64 AND i + n.replaced <= length(typed) + 1
$$;
COMMENT ON FUNCTION inturn._further_spellings_of IS
    'Internal to why: a text as whoever mistyped a character may have meant it.';
