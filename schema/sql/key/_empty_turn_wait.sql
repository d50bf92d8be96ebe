-- Returns how long a key waits after so many empty turns in a row: 1, 2, 4 ... 100 ms. A caller's transaction is open
-- on it.
-- Internal. Takes no locks. Qualified, not pinned: it is inlined.
CREATE FUNCTION inturn._empty_turn_wait(empty_turns integer) RETURNS interval
LANGUAGE sql IMMUTABLE
AS $$
SELECT CASE WHEN empty_turns OPERATOR(pg_catalog.>) 0
            THEN least(pg_catalog.power(2, least(empty_turns OPERATOR(pg_catalog.-) 1, 10)), 100)
            ELSE 0 END OPERATOR(pg_catalog.*) interval '1 ms'
$$;
COMMENT ON FUNCTION inturn._empty_turn_wait IS 'Internal: how long a key waits after so many empty turns in a row.';
