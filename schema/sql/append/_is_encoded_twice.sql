-- Says whether a payload is a JSON string whose text is a JSON object or array. Internal to _refuse_command. Takes no
-- locks.
CREATE FUNCTION inturn._is_encoded_twice(payload jsonb) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    content constant text := payload #>> '{}';
BEGIN
    RETURN jsonb_typeof(payload) = 'string' AND content ~ E'^\\s*[{[]'
        AND json_typeof(content::json) IN ('object', 'array');
EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
    RETURN false; -- a text that begins like JSON
END
$$;
COMMENT ON FUNCTION inturn._is_encoded_twice IS
    'Internal to append: whether a payload is a JSON string that holds an object or array.';
