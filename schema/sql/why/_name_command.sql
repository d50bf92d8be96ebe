-- Names a command as operators read it: its number, and its name. Internal to why.
CREATE FUNCTION inturn._name_command(command inturn.command_log) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT format('%s (%s)', command.seq, inturn._shorten(command.name, 60)) WHERE command.seq IS NOT NULL
$$;
COMMENT ON FUNCTION inturn._name_command IS 'Internal to why: names a command.';
