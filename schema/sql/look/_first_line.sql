-- Returns the first line of an error that says something, by which errors are grouped and looked for: its spaces
-- collapsed, cut to 1,000 characters. Internal. Takes no locks. Qualified, not pinned: it is inlined.
CREATE FUNCTION inturn._first_line(error text) RETURNS text
LANGUAGE sql IMMUTABLE
AS $$
SELECT inturn._shorten(error, 1000)
$$;
COMMENT ON FUNCTION inturn._first_line IS 'Internal: the first line of an error.';
