-- Saves how far a prune of a topic came, as a new row above the last one. Internal to prune_batch.
--
-- Two prunes at once save now the one's, now the other's: what lies between is looked at again, or a little later.
CREATE FUNCTION inturn._save_prune_pass(topic text, from_key text, next_key text) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    last inturn.prune_pass;
BEGIN
    SELECT * INTO last FROM inturn.prune_pass p WHERE p.topic = _save_prune_pass.topic ORDER BY p.pass DESC LIMIT 1;
    DELETE FROM inturn.prune_pass p WHERE p.topic = last.topic AND p.pass = last.pass;
    INSERT INTO inturn.prune_pass (topic, pass, next_key, began_at)
    VALUES (_save_prune_pass.topic, coalesce(last.pass, 0) + 1, _save_prune_pass.next_key,
            CASE WHEN from_key <> '' THEN coalesce(last.began_at, clock_timestamp()) ELSE clock_timestamp() END)
    ON CONFLICT DO NOTHING;
END
$$;
COMMENT ON FUNCTION inturn._save_prune_pass IS 'Internal to prune_batch: saves how far a prune came.';
