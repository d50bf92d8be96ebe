-- Returns a failure of a SQL target as text for people: what, its SQLSTATE unless it asked for something, then details.
-- Internal to the appliers. Takes no locks.
CREATE FUNCTION inturn._failure_text(
    state text, message text, detail text, hint text, context text, is_asked boolean, problem text
) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT concat_ws(
    E'\n', CASE WHEN is_asked THEN message ELSE format('%s (SQLSTATE %s)', message, state) END,
    'DETAIL: ' || nullif(detail, ''), 'HINT: ' || nullif(hint, ''), problem,
    -- Of the frames, those of the target.
    CASE WHEN NOT is_asked THEN 'CONTEXT: ' || nullif(
        regexp_replace(context, E'\\n?(SQL statement "(SELECT commands|SET CONSTRAINTS ALL IMMEDIATE)'
                                '|PL/pgSQL function inturn._(apply_key|apply_alone|check_effects)\\().*$', ''), '') END)
$$;
COMMENT ON FUNCTION inturn._failure_text IS 'Internal to the appliers: a failure of a SQL target as text for people.';
