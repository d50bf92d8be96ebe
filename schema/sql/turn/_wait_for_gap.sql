-- Marks that a key waits for a missing number, or is held because it has waited too long. Internal to finish.
--
-- The caller holds the key's row in key_sequence and its ticket.
CREATE FUNCTION inturn._wait_for_gap(topic text, key text) RETURNS void
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
SELECT inturn._save_key(c, inturn._find_gap(c)) FROM inturn._find_cursor(_wait_for_gap.topic, _wait_for_gap.key) c
$$;
COMMENT ON FUNCTION inturn._wait_for_gap IS 'Internal to finish: marks that a key waits for a missing number.';
