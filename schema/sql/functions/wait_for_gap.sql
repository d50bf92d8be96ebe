-- Marks that a key waits for a missing number, or is held because it has waited too long. Internal to finish.
--
-- The caller holds the key's row in key_sequence and its ticket.
CREATE FUNCTION inturn.wait_for_gap(topic text, key text) RETURNS void
LANGUAGE sql VOLATILE
SET enable_seqscan = off
AS $$
SELECT inturn.save_key(c, inturn.find_gap(c)) FROM inturn.key_cursor c
WHERE c.topic = wait_for_gap.topic AND c.key = wait_for_gap.key
$$;
COMMENT ON FUNCTION inturn.wait_for_gap IS 'Internal to finish: marks that a key waits for a missing number.';
