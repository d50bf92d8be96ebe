-- Deletes the marks of keys whose turns end well; of a turn that applied nothing, all but since when the key waits for
-- a missing number. Internal to finish.
--
-- The arrays run in parallel. The caller has locked the keys' tickets.
CREATE FUNCTION inturn._clear_marks(
    topic text, keys text[], epochs bigint[], drained boolean[], from_seqs bigint[], applied_seqs bigint[]
) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
BEGIN
    UPDATE inturn.key_mark m SET
        attempts = 0, last_error = NULL, failed_at = NULL, paused_at = NULL, paused_until = NULL,
        claimed_by = NULL, claimed_at = NULL, lease_until = NULL, lost = 0
    FROM unnest(keys, epochs, from_seqs, applied_seqs) t (key, epoch, from_seq, applied_seq)
    WHERE m.topic = _clear_marks.topic AND m.key = t.key AND m.epoch = t.epoch - 1
      AND t.applied_seq < t.from_seq AND m.waiting_at IS NOT NULL;
    DELETE FROM inturn.key_mark m
    USING unnest(keys, epochs, drained, from_seqs, applied_seqs) t (key, epoch, drained, from_seq, applied_seq)
    WHERE m.topic = _clear_marks.topic AND m.key = t.key AND m.epoch = t.epoch - 1
      AND NOT (t.applied_seq < t.from_seq AND m.waiting_at IS NOT NULL);
END
$$;
COMMENT ON FUNCTION inturn._clear_marks IS 'Internal to finish: deletes the marks of keys whose turns end well.';
