CREATE FUNCTION inturn.finish(
    topic text, keys text[], epochs bigint[], from_seqs bigint[], applied_seqs bigint[], applier text
) RETURNS void
LANGUAGE plpgsql VOLATILE
-- Neither pinned nor with other settings, which would reach into the constraints' functions: all is qualified.
AS $$
-- Ends turns: moves each key to its last applied command and lets it go idle, or to the back of the queue.
--
-- The arrays run in parallel, an element a key claimed in this transaction. A turn that applied nothing has
-- applied_seqs = from_seqs - 1: its key is ready again a little later, doubling up to 100 ms, since a caller's
-- transaction is open on it; or it goes idle.
-- Locks the keys' rows in key_sequence, skipping those that a caller holds. From here to the commit the callers of
-- these keys wait: all handlers of a transaction run before it, and nothing after it.
-- Deferred constraints are checked first: from here on they are immediate in this transaction. Then cursors WITH
-- HOLD that were opened in it are closed, see _close_cursors.
-- Raises IT030 when this transaction does not hold the claim, or another turn was recorded since; IT031 outside READ
-- COMMITTED; IT032 when applied_seqs names a command that is not there.
BEGIN
    PERFORM inturn._require_read_committed();
    -- An error at COMMIT would be no command's failure; and their locks come before those of the callers.
    SET CONSTRAINTS ALL IMMEDIATE;
    PERFORM inturn._close_cursors();
    PERFORM inturn._finish(topic, keys, epochs, from_seqs, applied_seqs, applier);
END
$$;
COMMENT ON FUNCTION inturn.finish IS
    'Ends turns that applied what they took: moves the keys on, lets drained ones go idle.';
