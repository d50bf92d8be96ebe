-- Returns where a key stands, as operator_action keeps it before and after. Internal. Takes no locks.
CREATE FUNCTION inturn._key_facts(c inturn.key_cursor) RETURNS jsonb
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT jsonb_strip_nulls(jsonb_build_object(
    'state', inturn._stored_state(c), 'applied_seq', c.applied_seq, 'epoch', c.epoch, 'attempts', c.attempts,
    'ready_at', c.ready_at, 'held_at', c.held_at, 'paused_at', c.paused_at, 'paused_until', c.paused_until,
    'waiting_at', c.waiting_at, 'claimed_by', c.claimed_by, 'lease_until', c.lease_until,
    'last_error', c.last_error))
$$;
COMMENT ON FUNCTION inturn._key_facts IS 'Internal to the operators'' functions: where a key stands.';
