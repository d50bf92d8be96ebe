-- Returns how long a key waits after so many empty turns in a row: 1, 2, 4 ... 100 ms. A caller's transaction is open on it.
-- Internal. Takes no locks.
CREATE FUNCTION inturn._empty_turn_wait(empty_turns integer) RETURNS interval
LANGUAGE sql IMMUTABLE
AS $$
SELECT CASE WHEN empty_turns > 0 THEN least(power(2, least(empty_turns - 1, 10)), 100) ELSE 0 END * interval '1 ms'
$$;
COMMENT ON FUNCTION inturn._empty_turn_wait IS 'Internal: how long a key waits after so many empty turns in a row.';
