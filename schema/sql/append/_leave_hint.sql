-- Leaves a hint that a key may have to be woken, and notifies if an applier of its topic may be asleep. Internal to
-- append.
--
-- For callers whose snapshot may be older than the key's last turn. Takes no locks.
CREATE FUNCTION inturn._leave_hint(topic text, key text) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO inturn.wake_hint (topic, key, left_at) VALUES (_leave_hint.topic, _leave_hint.key, clock_timestamp());
    PERFORM inturn._notify_appliers(topic);
END
$$;
COMMENT ON FUNCTION inturn._leave_hint IS 'Internal to append: leaves a hint that a key may have to be woken.';
