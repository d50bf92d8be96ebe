CREATE FUNCTION inturn.progress(topic text, key text, OUT applied_seq bigint, OUT state text)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
-- Says how far a key is: up to where everything has taken effect or was skipped, and its state (see key_state).
--
-- Callers may ask for the topics that they may append to; it shows no payload, name or error. Both are NULL for a key
-- that has no number yet.
-- Takes no locks. Raises IT001, IT014.
DECLARE
    cursor inturn.key_cursor;
BEGIN
    IF NOT EXISTS (SELECT FROM inturn.topic t WHERE t.name = progress.topic) THEN
        PERFORM inturn._refuse_topic(topic);
    END IF;
    PERFORM inturn._require_grant(topic, 'caller');
    SELECT * INTO cursor FROM inturn._find_cursor(progress.topic, progress.key) c;
    IF FOUND THEN
        applied_seq := cursor.applied_seq;
        state := inturn._seen_state(cursor);
    END IF;
END
$$;
COMMENT ON FUNCTION inturn.progress IS 'Says how far a key is, and its state, to callers of its topic.';
