-- Returns with what every text begins that a LIKE pattern matches; the empty text where that is nothing, or for NULL.
-- Internal to list_keys, which looks for idle keys from there on. Takes no locks.
CREATE FUNCTION inturn._like_prefix(pattern text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT coalesce(regexp_replace(substring(pattern FROM E'^(?:[^%_\\\\]|\\\\.)*'), E'\\\\(.)', E'\\1', 'g'), '')
$$;
COMMENT ON FUNCTION inturn._like_prefix IS 'Internal to list_keys: with what every text begins that a pattern matches.';
