-- Notes in which topics an applier takes the first keys alone still: whoever starts meanwhile does the same (see
-- _careful_keys). Internal to appliers.
--
-- careful: how many keys of each topic. A topic that another applier has noted is not noted again: an applier that is
-- careful because that one is does not pass it on, or where many start, one after the other, it would go on for ever.
-- Locks: the applier's row, if that changes.
CREATE FUNCTION inturn._note_careful(applier text, topics text[], careful integer[]) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
UPDATE inturn.applier a SET careful = n.topics
FROM (SELECT ARRAY(SELECT t.name FROM unnest(_note_careful.topics, _note_careful.careful) t (name, keys)
                   WHERE t.keys > 0 AND NOT EXISTS (
                       SELECT FROM inturn.applier o
                       WHERE o.applier <> _note_careful.applier AND NOT o.ended
                         AND t.name = ANY (o.careful) AND t.name = ANY (o.topics))
                   ORDER BY t.name) AS topics OFFSET 0) n
WHERE a.applier = _note_careful.applier AND a.careful <> n.topics
$$;
COMMENT ON FUNCTION inturn._note_careful IS
    'Internal to appliers: notes in which topics an applier takes the first keys alone still.';
