-- Returns where the history of each key is to be cut, and how; no row for a key of which nothing is to be removed.
-- Internal to prune_batch. Takes no locks.
--
-- A history is cut after a turn, its witness: the last one that, like all before it, had ended by done_before. One that
-- seems to have ended in the future, by a clock that was ahead, ended before the next one did. Numbers up to the
-- witness's applied_seq are removed, and the turns before it. The witness stays, because it says where the key stood:
-- so neither a key's last turn nor a pending command is removed. A turn to which a lease may still add cannot be the
-- witness. Nothing is removed of a held or paused key.
-- from_seq, from_epoch: where the history begins now. seq, epoch: where it begins after the cut; epoch is the witness.
-- cost: about how many rows are removed. If it would exceed max_rows, the cut is an earlier one, and more is true; a
-- turn is removed as a whole.
-- kept_from, kept_to: of the commands that were kept for their idempotency keys, the ones from before kept_before go
-- too, judged in the same way.
-- forgettable: nothing of it is left but a last turn that ended before idle_before, and its callers do not number.
-- Looks from where the history begins now: what a held snapshot keeps of what went before is not walked over.
CREATE FUNCTION inturn._find_cuts(
    settings inturn.topic, keys text[], done_before timestamptz, kept_before timestamptz, idle_before timestamptz,
    max_rows integer
) RETURNS SETOF inturn._cut
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
AS $$
SELECT * FROM (
    SELECT s.key, f.seq AS from_seq, f.epoch AS from_epoch, c.applied_seq + 1 AS seq, c.epoch, c.cost + p.rows AS cost,
           c.more OR p.rows >= max_rows AS more, s.kept_seq AS kept_from, p.kept_to,
           (settings.numbering <> 'given' AND t.epoch IS NULL AND c.epoch = u.epoch AND u.drained AND s.kept_seq IS NULL
            AND u.finished_at < idle_before) IS TRUE AS forgettable
    FROM unnest(keys) k (key)
    CROSS JOIN LATERAL (SELECT s.* FROM inturn.key_sequence s
                        WHERE s.topic = settings.name AND s.key >= k.key AND s.key <= k.key
                        ORDER BY s.key DESC LIMIT 1) s
    -- Most keys have nothing that is due, which the first turn tells that stays.
    CROSS JOIN LATERAL (
        SELECT coalesce(s.history_seq, settings.first_seq) AS seq, coalesce(s.history_epoch, 0) AS epoch
        WHERE idle_before IS NOT NULL OR s.kept_seq IS NOT NULL OR (
            -- Compared in here: outside, the comparison would be two, with a copy of this in each.
            SELECT w.finished_at NOT BETWEEN done_before AND clock_timestamp() FROM inturn.turn w
            WHERE w.topic = settings.name AND w.key = k.key AND w.epoch >= coalesce(s.history_epoch, 0)
              AND CASE WHEN w.epoch = s.history_epoch THEN w.applied_seq >= s.history_seq ELSE true END
            ORDER BY w.epoch LIMIT 1) OFFSET 0) f
    CROSS JOIN LATERAL (
        SELECT u.epoch, u.drained, u.finished_at FROM inturn.turn u
        WHERE u.topic = settings.name AND u.key = k.key ORDER BY u.epoch DESC LIMIT 1) u
    LEFT JOIN LATERAL (
        SELECT t.epoch, t.marked FROM inturn.ticket t
        WHERE t.topic = settings.name AND t.key = k.key AND t.epoch >= u.epoch ORDER BY t.epoch DESC LIMIT 1) t ON true
    LEFT JOIN LATERAL (
        SELECT m.held_at, m.paused_at, m.claimed_by FROM inturn.key_mark m
        WHERE t.marked AND m.topic = settings.name AND m.key = k.key AND m.epoch = t.epoch LIMIT 1) m ON true
    CROSS JOIN LATERAL (
        SELECT c.epoch, c.applied_seq, c.cost, max(c.turns) OVER () > c.turns AS more
        FROM (SELECT w.epoch, w.applied_seq, w.finished_at, row_number() OVER v AS turns,
                     row_number() OVER v + w.applied_seq - f.seq AS cost,
                     bool_and(w.finished_at NOT BETWEEN done_before AND clock_timestamp()) OVER v AS ended
              FROM (SELECT w.epoch, w.applied_seq, w.finished_at FROM inturn.turn w
                    WHERE w.topic = settings.name AND w.key = k.key AND w.epoch >= f.epoch
                    ORDER BY w.epoch LIMIT max_rows::bigint + 2) w
              WINDOW v AS (ORDER BY w.epoch)) c
        WHERE c.ended AND c.finished_at < done_before AND NOT (c.epoch = u.epoch AND m.claimed_by IS NOT NULL)
        -- The last one within the bounds; without any, the first one beyond them; without any, nothing goes.
        ORDER BY CASE WHEN c.cost > max_rows THEN 1 WHEN c.cost > 0 THEN 0 ELSE 2 END,
                 CASE WHEN c.cost > max_rows THEN c.turns ELSE -c.turns END LIMIT 1) c
    CROSS JOIN LATERAL (
        SELECT max(o.seq) AS kept_to, coalesce(max(o.place), 0) AS rows
        FROM (SELECT l.seq, l.created_at, row_number() OVER v AS place,
                     bool_and(l.created_at NOT BETWEEN kept_before AND clock_timestamp()) OVER v AS ended
              FROM (SELECT l.seq, l.created_at FROM inturn.command_log l
                    WHERE l.topic = settings.name AND l.key = k.key AND l.seq >= s.kept_seq AND l.seq < f.seq
                    ORDER BY l.seq LIMIT max_rows) l
              WINDOW v AS (ORDER BY l.seq)) o
        WHERE o.ended AND o.created_at < kept_before) p
    WHERE num_nonnulls(m.held_at, m.paused_at) = 0) c
WHERE c.cost > 0 OR c.forgettable
$$;
COMMENT ON FUNCTION inturn._find_cuts IS 'Internal to prune_batch: where the history of each key is to be cut.';
