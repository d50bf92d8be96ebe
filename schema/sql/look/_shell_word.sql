-- Returns a text as one word of a shell, for command lines in hints: each is pasted as it stands. Internal. Takes no
-- locks.
--
-- positional: it stands by itself, after all options. One that begins with a dash is not an option then either.
CREATE FUNCTION inturn._shell_word(text_ text, positional boolean DEFAULT false) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT CASE WHEN positional AND text_ LIKE '-%' THEN '-- ' ELSE '' END
    || CASE WHEN text_ ~ '^[A-Za-z0-9_@%+:./-][A-Za-z0-9_@%+:./=-]*$' THEN text_
            ELSE '''' || replace(text_, '''', '''"''"''') || '''' END
$$;
COMMENT ON FUNCTION inturn._shell_word IS 'Internal: a text as one word of a shell.';
