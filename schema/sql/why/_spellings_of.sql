-- Returns a text as it may have been meant: itself, without spaces or quotes around it, in other case, without one
-- of its characters, with two neighbours in each other's place. Internal to why.
CREATE FUNCTION inturn._spellings_of(typed text) RETURNS SETOF text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT unnest(ARRAY[typed, t.bare, lower(t.bare), upper(t.bare), initcap(t.bare), trim(t.bare, $x$'"`,;.$x$)])
FROM (SELECT trim(typed, E' \t\r\n')) t (bare)
UNION
SELECT overlay(typed PLACING '' FROM i FOR 1) FROM generate_series(1, length(typed)) i WHERE length(typed) <= 64
UNION
SELECT overlay(typed PLACING substr(typed, i + 1, 1) || substr(typed, i, 1) FROM i FOR 2)
FROM generate_series(1, length(typed) - 1) i WHERE length(typed) <= 64
$$;
COMMENT ON FUNCTION inturn._spellings_of IS 'Internal to why: a text as it may have been meant.';
