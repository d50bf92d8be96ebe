-- Returns a topic that is to be pruned. Internal to prune_batch. Takes no locks.
--
-- older_than: given by an operator, to whom the topic has to be granted; NULL: the topic's own retain, for anybody.
-- Raises IT001; IT014 when it is granted to other operators only; IT070 when neither the call nor the topic says how
-- long to keep what was applied; IT031 outside READ COMMITTED.
CREATE FUNCTION inturn._check_prune(topic text, older_than interval) RETURNS inturn.topic
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    settings inturn.topic;
BEGIN
    PERFORM inturn._require_read_committed();
    SELECT * INTO settings FROM inturn.topic t WHERE t.name = _check_prune.topic;
    IF NOT FOUND THEN
        PERFORM inturn._refuse_topic(topic);
    END IF;
    PERFORM inturn._require_grant(topic, 'operator') WHERE older_than IS NOT NULL;
    IF older_than < '0' THEN
        RAISE EXCEPTION USING ERRCODE = 'IT070', MESSAGE = format('older_than is %s; 0 or more is allowed', older_than),
            HINT = 'Nothing was removed.';
    ELSIF coalesce(older_than, settings.retain) IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'IT070', MESSAGE = format('topic %L keeps everything: it has no retain', topic),
            HINT = 'Nothing was removed. Say how long to keep what was applied: inturn topic set --retain 30d '
                   || inturn._shell_word(topic, positional => true);
    END IF;
    RETURN settings;
END
$$;
COMMENT ON FUNCTION inturn._check_prune IS 'Internal to prune_batch: returns a topic that is to be pruned.';
