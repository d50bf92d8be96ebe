CREATE FUNCTION inturn.why(of_topic text, of_key text)
RETURNS TABLE (topic text, key text, cause text, since timestamptz, says text, to_do text, details jsonb)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
-- Before 18 a table that has to be read whole costs so much under these settings that it would be compiled for.
SET jit = off
AS $$
-- Says why a key does not move: the one cause, since when, and what to do next.
--
-- of_topic: NULL for every topic that has the key, a row each; one row when none has. Topics that are granted to other
-- operators only are left out. cause: a stable code, see the docs.
-- says: a sentence. to_do: the next commands to type, a line each; {key} and {topic} in it stand for the key and the
-- topic, which whoever prints it puts in their place, once. details: the facts.
-- Runs as its owner, so that an operator sees other users' sessions; the owner needs pg_monitor, or is a superuser.
-- Locks, for a moment, what nobody else has locked: the key's ticket, and its row in key_sequence. Raises IT001, IT014.
DECLARE
    topics text[] := ARRAY[of_topic];
BEGIN
    PERFORM inturn._require_grant(of_topic, 'operator');
    IF of_topic IS NULL THEN
        topics := ARRAY(SELECT t.name FROM inturn.topic t
                        WHERE t.name <> ALL ((SELECT inturn._hidden_topics())::text[]) AND (
                           EXISTS (SELECT FROM inturn.key_sequence c WHERE c.topic = t.name AND c.key = of_key)
                           OR t.numbering = 'arrival'
                           AND EXISTS (SELECT FROM inturn.arrived_key i WHERE i.topic = t.name AND i.key = of_key)
                           OR inturn._is_append_open(t.name, of_key, NULL)) ORDER BY t.name);
    ELSIF NOT EXISTS (SELECT FROM inturn.topic t WHERE t.name = of_topic) THEN
        PERFORM inturn._refuse_topic(of_topic);
    END IF;
    IF topics = '{}' THEN
        RETURN QUERY SELECT NULL, of_key, e.* FROM inturn._explain_unknown(NULL, of_key) e;
    END IF;
    RETURN QUERY SELECT t.name, of_key, e.* FROM unnest(topics) WITH ORDINALITY t (name, position)
    CROSS JOIN LATERAL inturn._explain_key(t.name, of_key) e ORDER BY t.position;
END
$$;
COMMENT ON FUNCTION inturn.why IS 'Says why a key does not move: the one cause, since when, and what to do next.';
