CREATE FUNCTION inturn.prune_batch(
    topic text, from_key text DEFAULT '', older_than interval DEFAULT NULL, max_rows integer DEFAULT 1000,
    OUT next_key text, OUT commands bigint, OUT turns bigint, OUT forgotten bigint
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
-- Removes a part of what a topic no longer has to keep, from the keys before from_key: one step of prune. Commit at
-- once afterwards.
--
-- from_key: '' for all. It goes from the last key to the first, each found by the one after it, and so from the end of
-- its entries, where its newest version is: what a held snapshot keeps of the others is not walked over.
-- older_than: how long ago the turn of a command has to have ended, which is recorded; NULL: the topic's retain. A
-- command with an idempotency key stays for retain_idempotency after its append, or without for retain, all the same.
-- next_key: the from_key with which to go on; NULL: all keys before from_key were looked at. Nothing is removed of a
-- paused topic. Of a topic that is granted to other operators only it names no key: '' says that there is more, and
-- '' as from_key goes on where the last prune came to.
-- Looks at 200 keys at most, and removes less than twice max_rows rows, but always whole turns.
-- Locks an advisory lock of the topic (see _prune_lock), shared with other prunes; skipping locked ones, the rows in
-- key_sequence of the keys of which something is to go; last of all the topic's rows in forgotten and prune_pass, for
-- which only other prunes wait. A caller of such a key waits for the commit, an applier does not.
-- A key that is locked is left for the next time. Raises IT001; IT014 for an older_than where the topic is granted to
-- other operators only; IT070 without a retention; IT031 outside READ COMMITTED.
DECLARE
    settings constant inturn.topic := inturn._check_prune(topic, older_than);
    -- No calendar goes back further than some thousand years: nothing is that old.
    longest constant interval := '1000 years';
    done_before constant timestamptz := clock_timestamp() - least(coalesce(older_than, settings.retain), longest);
    -- Of commands with idempotency keys; where the topic says nothing, they are as others.
    kept constant interval := coalesce(settings.retain_idempotency, settings.retain);
    kept_before constant timestamptz := CASE WHEN kept IS NULL THEN 'infinity'
                                             ELSE clock_timestamp() - least(kept, longest) END;
    idle_before constant timestamptz := CASE WHEN settings.forget_idle_after IS NOT NULL
                                             THEN clock_timestamp() - least(settings.forget_idle_after, longest) END;
    most constant integer := greatest(max_rows, 1);
    hidden constant boolean := topic = ANY (inturn._hidden_topics());
    began_with constant text := CASE WHEN hidden AND from_key = '' THEN (
        SELECT p.next_key FROM inturn.prune_pass p WHERE p.topic = prune_batch.topic ORDER BY p.pass DESC LIMIT 1)
        ELSE from_key END;
    keys text[] := inturn._keys_before(topic, nullif(began_with, ''), CASE
        WHEN settings.paused_at IS NOT NULL
             AND clock_timestamp() < coalesce(settings.paused_until, 'infinity') THEN 0 ELSE 200 END);
    chosen record;
    cuts inturn._cut[];
    last_key text;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(inturn._prune_lock(topic));
    next_key := keys[200];
    -- Looked at without a lock; the first of them, up to the bound, and to the first that has more.
    SELECT array_agg(c.key ORDER BY c.place) AS keys, bool_or(c.more) OR max(c.place) < max(c.of) AS stopped
    INTO chosen FROM (
        SELECT c.key, c.more, row_number() OVER v AS place, count(*) OVER () AS of,
               sum(c.cost) OVER v - c.cost AS before,
               count(*) FILTER (WHERE c.more) OVER v - c.more::integer AS stops
        FROM inturn._find_cuts(settings, keys, done_before, kept_before, idle_before, most) c
        WINDOW v AS (ORDER BY c.key DESC)) c
    WHERE c.before < most AND c.stops = 0;
    -- Before the locks: it may wait for another operator's transaction.
    IF older_than IS NOT NULL AND chosen.keys IS NOT NULL THEN
        PERFORM inturn._record_prune(topic, older_than);
    END IF;
    keys := ARRAY(SELECT s.key FROM unnest(chosen.keys) k (key) CROSS JOIN LATERAL (
                      SELECT s.key FROM inturn.key_sequence s
                      WHERE s.topic = prune_batch.topic AND s.key >= k.key AND s.key <= k.key
                      ORDER BY s.key DESC LIMIT 1 FOR UPDATE SKIP LOCKED) s);
    -- A statement of its own, whose snapshot is newer than the locks.
    cuts := ARRAY(SELECT c FROM inturn._find_cuts(settings, keys, done_before, kept_before, idle_before, most) c);
    SELECT c.commands, c.turns INTO commands, turns FROM inturn._cut_history(topic, cuts, done_before, kept_before) c;
    forgotten := inturn._forget_keys(topic, ARRAY(SELECT c FROM unnest(cuts) c WHERE c.forgettable), idle_before);
    IF chosen.stopped THEN
        last_key := chosen.keys[cardinality(chosen.keys)];
        -- With it, or without: \x01 is the first that can follow, byte by byte.
        next_key := last_key || CASE WHEN (SELECT c.more FROM unnest(cuts) c WHERE c.key = last_key) THEN E'\x01'
                                     ELSE '' END;
    END IF;
    PERFORM inturn._save_prune_pass(topic, began_with, next_key);
    next_key := CASE WHEN hidden AND next_key IS NOT NULL THEN '' ELSE next_key END;
END
$$;
COMMENT ON FUNCTION inturn.prune_batch IS 'Removes a part of what a topic no longer has to keep: one step of prune.';
