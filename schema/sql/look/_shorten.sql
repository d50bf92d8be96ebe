-- Returns the first line of a text that says something, its spaces collapsed, cut to that many characters: after a
-- word, unless that is very long. Internal. Takes no locks. Strict: a filter by errors asks for those of many keys, of
-- which most have none.
CREATE FUNCTION inturn._shorten(text_ text, most integer) RETURNS text
LANGUAGE sql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
SELECT CASE WHEN length(l.line) > most
            THEN left(regexp_replace(left(l.line, most - 2), E'\\s\\S{0,29}$', ''), most - 3) || '...' ELSE l.line END
FROM (SELECT regexp_replace(split_part(ltrim(left(text_, 4000), E' \t\r\n'), E'\n', 1), E'\\s+', ' ', 'g')) l (line)
$$;
COMMENT ON FUNCTION inturn._shorten IS 'Internal: the first line of a text, cut.';
