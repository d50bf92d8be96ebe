-- Refuses a given number that the key has passed, or that is too far ahead of it. Internal to append. Takes no locks.
--
-- Raises IT052 for one that was passed over, without the reason, which is the operators'; IT053 for one further ahead than the topic's max_ahead.
CREATE FUNCTION inturn._refuse_place(settings inturn.topic, key text, seq bigint, applied_seq bigint) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    IF seq <= applied_seq THEN
        RAISE EXCEPTION USING ERRCODE = 'IT052',
            MESSAGE = format('seq %s of key %L of topic %L was passed over', seq, key, settings.name),
            HINT = format('The key is at %s and does not go back: append it with a new number.', applied_seq);
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'IT053',
        MESSAGE = format('seq %s of key %L is over %s ahead of the last applied one, %s', seq, key, settings.max_ahead, applied_seq),
        HINT = 'Append the missing ones first, or raise the topic''s max_ahead.';
END
$$;
COMMENT ON FUNCTION inturn._refuse_place IS 'Internal to append: refuses a given number that is passed, or too far ahead.';
