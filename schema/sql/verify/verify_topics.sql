CREATE FUNCTION inturn.verify_topics() RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
-- Returns the topics to verify: all that are there, and any that rows are left of although it is not. Takes no locks.
--
-- Each step looks for the next name in the primary keys, so the number of rows does not matter. Topics that are granted
-- to other operators only are left out.
WITH RECURSIVE step (topic) AS (
    SELECT '' COLLATE "C"
    UNION ALL
    SELECT least((SELECT min(t.name) FROM inturn.topic t WHERE t.name > step.topic),
                 (SELECT min(l.topic) FROM inturn.command_log l WHERE l.topic > step.topic),
                 (SELECT min(i.topic) FROM inturn.intake i WHERE i.topic > step.topic),
                 (SELECT min(s.topic) FROM inturn.key_sequence s WHERE s.topic > step.topic),
                 (SELECT min(c.topic) FROM inturn.ticket c WHERE c.topic > step.topic),
                 (SELECT min(m.topic) FROM inturn.key_mark m WHERE m.topic > step.topic),
                 (SELECT min(t.topic) FROM inturn.turn t WHERE t.topic > step.topic),
                 (SELECT min(m.topic) FROM inturn.merge_plan m WHERE m.topic > step.topic),
                 (SELECT min(k.topic) FROM inturn.skip k WHERE k.topic > step.topic))
    FROM step WHERE step.topic IS NOT NULL
)
SELECT step.topic FROM step WHERE step.topic <> '' AND step.topic <> ALL ((SELECT inturn._hidden_topics())::text[])
$$;
COMMENT ON FUNCTION inturn.verify_topics IS 'The topics to verify: all there are, and any that rows are left of.';
