-- Says whether nothing of a text can be seen: it is NULL, or only white space, any of Unicode's, and characters without
-- width.
-- Internal to the operators' functions. Takes no locks.
--
-- By its octets, so that it is the same in every encoding and collation.
CREATE FUNCTION inturn._is_blank(content text) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
-- Tab to carriage return, U+001C to U+0020, U+0085, U+00A0, U+00AD, U+1680, U+180E, U+2000 to U+200F, U+2028 to U+202F,
-- U+205F to U+206F, U+3000, U+FEFF.
SELECT content IS NULL OR encode(convert_to(content, 'UTF8'), 'hex') ~ ('^(0[9a-d]|1[c-f]|20|c2(85|a0|ad)|e19a80|e1a08e'
    || '|e280(8[0-9a-f]|a[89a-f])|e281(9f|a[0-9a-f])|e38080|efbbbf)*$')
$$;
COMMENT ON FUNCTION inturn._is_blank IS 'Internal to the operators'' functions: whether nothing of a text can be seen.';
