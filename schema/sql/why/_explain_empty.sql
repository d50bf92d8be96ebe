-- Explains a key on which nothing committed is pending: a caller's transaction is open on it, commands that have
-- arrived have no number yet, or it is idle.
-- Internal to why. Locks what _explain_appending does, for a moment.
--
-- locked: its row in key_sequence is.
CREATE FUNCTION inturn._explain_empty(c inturn.key_cursor, t inturn.topic, locked boolean)
RETURNS TABLE (cause text, since timestamptz, says text, to_do text, details jsonb)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    last inturn.turn;
BEGIN
    IF t.numbering = 'arrival' THEN
        -- Its callers lock nothing: whoever has the key locked numbers it, or is an operator.
        RETURN QUERY SELECT * FROM inturn._explain_arrived(c.topic, c.key);
        IF FOUND THEN RETURN; END IF;
    ELSIF locked THEN
        RETURN QUERY SELECT * FROM inturn._explain_appending(c, t.numbering);
        RETURN;
    END IF;
    SELECT * INTO last FROM inturn.turn u WHERE u.topic = c.topic AND u.key = c.key AND u.outcome <> 'idle'
    ORDER BY u.epoch DESC LIMIT 1;
    RETURN QUERY SELECT 'nothing_pending', last.finished_at,
        format('Every command that was committed on it has had its turn, up to %s%s', c.applied_seq,
               coalesce('; the last turn was that of ' || last.applier, '')),
        'inturn show --topic {topic} {key}  # what is not there was not committed',
        jsonb_build_object('applied_seq', c.applied_seq, 'applier', last.applier, 'applied_at', last.finished_at);
END
$$;
COMMENT ON FUNCTION inturn._explain_empty IS 'Internal to why: explains a key on which nothing is pending.';
