-- Explains a key that has no cursor: its first command is being appended, or has no number yet, or there is no such
-- key. Internal to why.
-- Locks what _is_append_open does, for a moment.
CREATE FUNCTION inturn._explain_unknown(topic text, key text)
RETURNS TABLE (cause text, since timestamptz, says text, to_do text, details jsonb)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    sessions jsonb;
    near jsonb;
BEGIN
    RETURN QUERY SELECT * FROM inturn._explain_arrived(topic, key);
    IF FOUND THEN RETURN; END IF;
    IF inturn._is_append_open(topic, key, NULL) THEN
        -- No row that can be seen names the caller.
        SELECT jsonb_agg(s.value ORDER BY s.position) INTO sessions
        FROM jsonb_array_elements(inturn._session_facts(inturn._lock_holders('0', 'inturn.key_sequence')))
            WITH ORDINALITY s (value, position) WHERE s.value->>'kind' IN ('caller', 'operator');
        RETURN QUERY SELECT * FROM inturn._explain_append(coalesce(sessions, '[]'), 0, (
            SELECT 1 WHERE NOT EXISTS (SELECT FROM inturn.topic t
                                       WHERE t.name = _explain_unknown.topic AND t.numbering = 'given')));
        RETURN;
    END IF;
    SELECT coalesce(jsonb_agg(jsonb_build_object('topic', n.topic, 'key', n.key)), '[]')
    INTO near FROM inturn._similar_keys(topic, key) n;
    RETURN QUERY SELECT 'no_such_key', NULL::timestamptz,
        CASE WHEN topic IS NULL THEN 'No topic has such a key' ELSE 'The topic has no such key' END
            || ': nothing was ever committed on it. Keys are compared byte by byte',
        CASE WHEN near = '[]' THEN 'inturn keys' ELSE '' END, jsonb_build_object('near', near);
END
$$;
COMMENT ON FUNCTION inturn._explain_unknown IS 'Internal to why: explains a key that has no cursor.';
