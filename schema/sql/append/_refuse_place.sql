-- Refuses a given number that the key has passed, or that is too far ahead of it. Internal to append. Takes no locks.
--
-- Raises IT071 for one from before the key's history, IT052 for one that was skipped, without the reason, which is
-- the operators'; IT053 for one further ahead than the topic's max_ahead.
CREATE FUNCTION inturn._refuse_place(settings inturn.topic, key text, seq bigint, applied_seq bigint) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    history_seq constant bigint := (SELECT s.history_seq FROM inturn.key_sequence s
                                    WHERE s.topic = settings.name AND s.key = _refuse_place.key);
BEGIN
    IF seq < history_seq THEN
        RAISE EXCEPTION USING ERRCODE = 'IT071',
            MESSAGE = format('seq %s of key %L of topic %L is done and was pruned: its history begins at %s',
                             seq, key, settings.name, history_seq),
            HINT = 'Whether it was this command can no longer be told. A repeat that comes so late need not be '
                   'appended; '
                   'keep commands longer with the topic''s retain.';
    ELSIF seq <= applied_seq THEN
        RAISE EXCEPTION USING ERRCODE = 'IT052',
            MESSAGE = format('seq %s of key %L of topic %L was skipped', seq, key, settings.name),
            HINT = format('The key is at %s and does not go back: append it with a new number.', applied_seq);
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'IT053',
        MESSAGE = format('seq %s of key %L is over %s ahead of the last applied one, %s', seq, key, settings.max_ahead,
                         applied_seq),
        HINT = 'Append the missing ones first, or raise the topic''s max_ahead.';
END
$$;
COMMENT ON FUNCTION inturn._refuse_place IS
    'Internal to append: refuses a given number that is passed, or too far ahead.';
