-- Returns the statement that ends a lease, as one word of a shell. Internal to why. Takes no locks.
--
-- A name that has something in it that a shell would read, or whoever puts a key in its place, is written in digits.
CREATE FUNCTION inturn._release_word(topic text, key text, epoch bigint) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT format('"SELECT inturn.release(%s, %s)"', string_agg(
           CASE WHEN u.name ~ '^[A-Za-z0-9_.:/-]*$' THEN format('''%s''', u.name)
                ELSE format('convert_from(decode(''%s'', ''hex''), ''UTF8'')',
                            encode(convert_to(u.name, 'UTF8'), 'hex')) END, ', ' ORDER BY u.place), epoch)
FROM unnest(ARRAY[topic, key]) WITH ORDINALITY u (name, place)
$$;
COMMENT ON FUNCTION inturn._release_word IS 'Internal to why: the statement that ends a lease, for a shell.';
