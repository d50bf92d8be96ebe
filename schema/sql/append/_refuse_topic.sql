-- Says that a topic does not exist. Internal. Takes no locks. Raises IT001.
CREATE FUNCTION inturn._refuse_topic(topic text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'IT001',
        MESSAGE = format('topic %s does not exist', coalesce(quote_literal(left(topic, 200)), 'NULL')),
        HINT = format('Create it first: SELECT inturn.create_topic(%L).', coalesce(left(topic, 200), 'NAME'));
END
$$;
COMMENT ON FUNCTION inturn._refuse_topic IS 'Internal: says that a topic does not exist.';
