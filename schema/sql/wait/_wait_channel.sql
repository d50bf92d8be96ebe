-- Returns the channel on which those who wait for a key listen: one for each key, so that nobody is woken for another
-- one's.
-- Internal. Takes no locks.
CREATE FUNCTION inturn._wait_channel(topic text, key text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT 'inturn.moved.' || lpad(to_hex(hashtextextended(topic || E'\x01' || key, 0)), 16, '0')
$$;
COMMENT ON FUNCTION inturn._wait_channel IS 'Internal: the channel on which those who wait for a key listen.';
