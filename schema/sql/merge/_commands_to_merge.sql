-- Returns the next commands of a key as _mergeable_commands does, of a key that is claimed or leased for the turn;
-- otherwise nothing.
-- Internal to _fold_merges.
--
-- Runs as its owner, because appliers need not read what operators do. Takes no locks. Raises what _held_seq does.
CREATE FUNCTION inturn._commands_to_merge(topic text, key text, applied_seq bigint, epoch bigint, max_commands integer)
RETURNS TABLE (seq bigint, name text, payload jsonb, created_at timestamptz, fixed boolean)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF inturn._held_seq(topic, key, epoch) <= applied_seq THEN
        RETURN QUERY SELECT * FROM inturn._mergeable_commands(topic, key, applied_seq, epoch, max_commands);
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._commands_to_merge IS
    'Internal to the appliers: the next commands of a key in hand, and whether each may be merged.';
