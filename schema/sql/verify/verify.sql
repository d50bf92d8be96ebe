CREATE FUNCTION inturn.verify(of_topic text, from_key text DEFAULT '', to_key text DEFAULT NULL)
RETURNS TABLE (violation text, topic text, key text, seq bigint, says text, rows jsonb)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
-- Plans for a slice, made of scans in the primary keys' order, whatever the statistics say.
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_nestloop = off
SET max_parallel_workers_per_gather = 0
SET jit = off
SET work_mem = '32MB'
AS $$
-- Recomputes the promises from what is stored, for the keys of a topic from from_key to to_key (NULL: to the end), and
-- returns a row a violation: a stable code, where, what is wrong, and the rows that show it. A key alone: give it
-- twice.
--
-- One statement, so one snapshot, in which each key's rows fit together whoever is at work: run it at any time. Its
-- cost is that of reading the keys; verify_slice says which keys are a piece of work. Takes no locks.
-- It believes no constraint, in case one was dropped. What the rows must say, a key:
--   the log has 1, 2, 3, ... n; it stands, by its one ticket or by its last turn, at an applied_seq from 0 to n;  
-- turns and skips cover 1 to applied_seq, each number once, under epochs from 1 to the key's, that rise with seq;  
-- each skip belongs to a turn that skipped or cancelled, or to the operator's action under its epoch, and the other way
--   round; what operators replayed and amended is in the log; a key with something pending is not idle, and one without
-- a   ticket is woken by its next command.
-- Where callers number, the first is the topic's first_seq; beyond applied_seq the log may have holes, up to it only
-- where an operator filled the gap, or all that was pending was cancelled. A key waits if and only if it stands before
-- a hole.
-- Where a key's history was pruned, or begins above forgotten ones, its row in key_sequence says so: its numbers begin
-- at history_seq, after the turn history_epoch, which is there and stood just before it. Nothing earlier is left, but
-- commands from kept_seq on that have an idempotency key.
-- What was merged together was done by one turn, all of it or nothing: its numbers are there, each planned alike, and
-- the turn came past the last of them; none of them was skipped too.
-- What has arrived and has no number yet is what the next pass of an applier looks at (see _number_topic).
-- A lease is whole, or there is none; no applier may claim the key while it runs, and one comes when it is over.
-- Epochs may have holes: a lease takes one when it is claimed, and leaves no row when nothing came of it. Whether there
-- ever was a lease nothing tells; a turn that is lost is still found by the numbers it applied.
-- Of times only the ends are compared: a turn's started_at is when its transaction began, and that may wait at the
-- claim until the turn before has ended. Clocks may step back, by a minute before it counts.
-- Raises IT014 when the topic is granted to other operators only; IT001 when there is no such topic, nor a row of it.
SELECT inturn._require_grant(of_topic, 'operator'), inturn._require_rows(of_topic);
-- bound: a value, not a condition with OR: it bounds the scans of the indexes.
WITH bound AS MATERIALIZED (
    SELECT coalesce(to_key, greatest(
        (SELECT max(l.key) FROM inturn.command_log l WHERE l.topic = of_topic),
        (SELECT max(s.key) FROM inturn.key_sequence s WHERE s.topic = of_topic),
        (SELECT max(c.key) FROM inturn.ticket c WHERE c.topic = of_topic),
        (SELECT max(m.key) FROM inturn.key_mark m WHERE m.topic = of_topic),
        (SELECT max(t.key) FROM inturn.turn t WHERE t.topic = of_topic),
        (SELECT max(k.key) FROM inturn.skip k WHERE k.topic = of_topic),
        (SELECT max(a.key) FROM inturn.operator_action a WHERE a.topic = of_topic),
        (SELECT max(i.key) FROM inturn.intake i WHERE i.topic = of_topic))) COLLATE "C" AS last_key
),
-- given: callers number. base: the number before the first.
numbers AS MATERIALIZED (
    SELECT count(*) FILTER (WHERE t.numbering = 'given') > 0 AS given,
           count(*) FILTER (WHERE t.numbering = 'arrival') > 0 AS arrival,
           coalesce(max(t.first_seq) FILTER (WHERE t.numbering = 'given') - 1, 0) AS base
    FROM inturn.topic t WHERE t.name = of_topic
),
command AS MATERIALIZED (
    SELECT l.key, min(l.seq) AS first_seq, max(l.seq) AS last_seq,
           count(*) FILTER (WHERE l.seq <> l.before + 1) AS faults,
           min(l.seq) FILTER (WHERE l.idempotency_key IS NULL) AS first_plain
    FROM (SELECT l.key, l.seq, l.idempotency_key, lag(l.seq) OVER (PARTITION BY l.key ORDER BY l.seq) AS before
          FROM inturn.command_log l
          WHERE l.topic = of_topic AND l.key >= from_key COLLATE "C" AND l.key <= (SELECT b.last_key FROM bound b)) l
    GROUP BY l.key
),
sequence AS (
    SELECT s.*, row_number() OVER (PARTITION BY s.key) AS copy FROM inturn.key_sequence s
    WHERE s.topic = of_topic AND s.key >= from_key COLLATE "C" AND s.key <= (SELECT b.last_key FROM bound b)
),
ticket AS (
    SELECT c.*, row_number() OVER (PARTITION BY c.key ORDER BY c.epoch DESC) AS copy FROM inturn.ticket c
    WHERE c.topic = of_topic AND c.key >= from_key COLLATE "C" AND c.key <= (SELECT b.last_key FROM bound b)
),
mark AS MATERIALIZED (
    SELECT m.*, row_number() OVER (PARTITION BY m.key, m.epoch) AS copy FROM inturn.key_mark m
    WHERE m.topic = of_topic AND m.key >= from_key COLLATE "C" AND m.key <= (SELECT b.last_key FROM bound b)
),
-- The last turn: its epoch, where the key stood then, and whether it was drained. The first one: the same.
last_turn AS (
    SELECT u.key, max(ARRAY[u.epoch, u.applied_seq, u.drained::integer]) AS entry,
           min(ARRAY[u.epoch, u.applied_seq]) AS first
    FROM inturn.turn u
    WHERE u.topic = of_topic AND u.key >= from_key COLLATE "C" AND u.key <= (SELECT b.last_key FROM bound b)
    GROUP BY u.key
),
-- Runs of numbers that were skipped under one epoch.
passed AS MATERIALIZED (
    SELECT k.key, k.epoch, k.by_operator, min(k.seq) AS lo, max(k.seq) AS hi, max(k.skipped_at) AS ended_at
    FROM (SELECT k.key, k.epoch, k.seq, k.skipped_at, k.skipped_by = 'operator' AS by_operator,
                 k.seq - row_number() OVER (PARTITION BY k.key, k.epoch, k.skipped_by = 'operator'
                                            ORDER BY k.seq) AS run
          FROM inturn.skip k
          WHERE k.topic = of_topic AND k.key >= from_key COLLATE "C" AND k.key <= (SELECT b.last_key FROM bound b)) k
    GROUP BY k.key, k.epoch, k.by_operator, k.run
),
-- Everything that moved a key. kind: 0 a turn, 1 what it skipped, 2 what an operator skipped; 3 moved nothing:
-- the key went idle without a turn.
move AS MATERIALIZED (
    SELECT t.key, t.epoch, CASE t.outcome WHEN 'idle' THEN 3 ELSE 0 END AS kind,
           t.from_seq AS lo, t.to_seq AS hi, t.outcome,
           t.error IS NULL AS well, t.started_at, t.finished_at AS ended_at
    FROM inturn.turn t
    WHERE t.topic = of_topic AND t.key >= from_key COLLATE "C" AND t.key <= (SELECT b.last_key FROM bound b)
    UNION ALL
    SELECT p.key, p.epoch, CASE WHEN p.by_operator THEN 2 ELSE 1 END, p.lo, p.hi, NULL, NULL, NULL, p.ended_at
    FROM passed p
),
reach AS (SELECT m.key, max(m.hi) AS hi, max(m.epoch) AS epoch FROM move m WHERE m.kind < 3 GROUP BY m.key),
key AS MATERIALIZED (
    SELECT k.*, m.key IS NOT NULL AS has_marks, m.held_at, m.paused_at, m.paused_until, m.waiting_at,
           m.claimed_by, m.claimed_at, m.lease_until, m.paused_at IS NOT NULL AND m.paused_until IS NULL AS paused
    FROM (SELECT key, greatest(k.last_seq, s.history_seq - 1, n.base) AS last_seq, k.first_seq, k.faults, k.first_plain,
                 s.history_seq, s.history_epoch, s.kept_seq, u.first AS first_turn,
                 greatest(r.hi, s.history_seq - 1, n.base) AS hi, coalesce(r.epoch, 0) AS last_epoch,
                 s.copy AS sequences, s.given AS given_key, s.arrival AS arrival_key, c.copy AS tickets,
                 u.entry[1] AS turn_epoch, u.entry[2] AS turn_seq, u.entry[3] = 1 AS drained,
                 coalesce(c.applied_seq, u.entry[2], s.history_seq - 1, n.base) AS applied_seq,
                 coalesce(c.epoch, u.entry[1]) AS epoch,
                 nullif(c.ready_at, 'infinity') AS ready_at, c.marked, n.given, n.arrival,
                 greatest(s.history_seq - 1, n.base) AS base
          FROM numbers n CROSS JOIN (command k FULL JOIN sequence s USING (key) FULL JOIN ticket c USING (key)
              FULL JOIN last_turn u USING (key) FULL JOIN reach r USING (key))) k
    LEFT JOIN mark m ON m.key = k.key AND m.epoch = k.epoch
),
-- The moves by number: how far the ones before it reach. A turn that applied nothing covers nothing.
cover AS (
    SELECT m.key, m.epoch, m.lo, m.hi, max(m.hi) OVER w AS reached, lag(m.epoch) OVER w AS epoch_before
    FROM move m WHERE m.hi >= m.lo AND m.kind < 3
    WINDOW w AS (PARTITION BY m.key ORDER BY m.lo, m.epoch, m.kind ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
),
-- The moves by epoch, each with its neighbours.
walk AS (
    SELECT m.*, lag(m.epoch) OVER w AS epoch_before, lag(m.lo) OVER w AS lo_before, lag(m.kind) OVER w AS kind_before,
           lag(m.kind) OVER w = 0 AND lag(m.outcome) OVER w IN ('skipped', 'cancelled') AS after_skipping,
           lead(m.epoch) OVER w AS epoch_after, lead(m.kind) OVER w AS kind_after,
           lead(m.lo) OVER w AS lo_after, lead(m.hi) OVER w AS hi_after, lag(m.ended_at) OVER w AS ended_before
    FROM move m WINDOW w AS (PARTITION BY m.key ORDER BY m.epoch, m.kind, m.lo)
),
action AS (
    SELECT a.*, row_number() OVER (PARTITION BY a.key, a.seq, a.action ORDER BY a.id DESC) = 1 AS latest
    FROM inturn.operator_action a
    WHERE a.topic = of_topic AND a.key >= from_key COLLATE "C" AND a.key <= (SELECT b.last_key FROM bound b)
      AND a.action IN ('skip', 'cancel-rest', 'replay', 'amend', 'fill-gap')
),
-- An operator's entries in skip, and the action that says so. after is free JSON: compared, never cast.
acted AS (
    SELECT coalesce(p.key, a.key) AS key, p.epoch, coalesce(p.lo, a.seq) AS lo, coalesce(p.hi, a.seq) AS hi, a.action
    FROM (SELECT * FROM passed p WHERE p.by_operator) p
    FULL JOIN (SELECT * FROM action a WHERE a.action IN ('skip', 'cancel-rest', 'fill-gap')) a
      ON a.key = p.key AND a.seq = p.lo AND a.after -> 'epoch' = to_jsonb(p.epoch)
     AND a.after -> 'applied_seq' = to_jsonb(p.hi)
    WHERE p.key IS NULL OR a.key IS NULL
),
finding (violation, key, seq, says, tables, epochs, lo, hi) AS (
    SELECT 'topic-missing', '', NULL::bigint, 'there are rows of this topic, and no such topic',
           '{}'::text[], '{}'::bigint[], NULL::bigint, NULL::bigint
    WHERE from_key = '' AND EXISTS (SELECT FROM key) AND NOT EXISTS (SELECT FROM inturn.topic t WHERE t.name = of_topic)

    -- P1
    UNION ALL
    SELECT CASE WHEN l.seq <= k.base THEN CASE WHEN k.given THEN 'seq-below-first' ELSE 'seq-below-one' END
                WHEN l.seq = l.before THEN 'seq-repeated' ELSE 'seq-missing' END,
           k.key, CASE WHEN l.seq > l.before + 1 AND l.seq > k.base THEN h.lo ELSE l.seq END,
           CASE WHEN l.seq <= k.base THEN format('command %s has a number below %s', l.seq, k.base + 1)
                WHEN l.seq = l.before THEN format('there is more than one command %s', l.seq)
                ELSE format('command%s missing before %s', CASE WHEN h.lo = h.hi THEN format(' %s is', h.lo)
                            ELSE format('s %s to %s are', h.lo, h.hi) END, l.seq) END,
           '{key_sequence,ticket,command_log,skip}', '{}', l.before, l.seq
    FROM key k CROSS JOIN LATERAL (
        SELECT l.seq, lag(l.seq, 1, k.base) OVER (ORDER BY l.seq) AS before FROM inturn.command_log l
        -- What is left from before the history is looked at below.
        WHERE l.topic = of_topic AND l.key = k.key AND (k.history_seq IS NULL OR l.seq >= k.history_seq)) l
    CROSS JOIN LATERAL (SELECT greatest(l.before, k.base) + 1 AS lo,
                               CASE WHEN k.given THEN least(l.seq - 1, k.applied_seq) ELSE l.seq - 1 END AS hi) h
    WHERE (k.faults > 0 OR k.first_seq <> k.base + 1) AND l.seq <> l.before + 1
      AND NOT (l.seq = k.base + 1 AND l.before <= k.base)
      -- A hole that is accounted for: each of its numbers was skipped as one that was not there.
      AND NOT (k.given AND l.seq > k.base AND l.seq > l.before AND h.hi - h.lo + 1 <= (
          SELECT count(*) FROM inturn.skip p
          WHERE h.hi >= h.lo AND p.topic = of_topic AND p.key = k.key AND p.seq BETWEEN h.lo AND h.hi
            AND CASE p.skipped_by
                WHEN 'operator' THEN NOT EXISTS (SELECT FROM inturn.operator_action a
                                                 WHERE a.topic = of_topic AND a.key = k.key
                                                 AND a.seq = p.seq AND a.action = 'skip')
                WHEN 'attempts' THEN NOT EXISTS (SELECT FROM inturn.turn u WHERE u.topic = of_topic AND u.key = k.key
                                                 AND u.epoch = p.epoch AND u.to_seq + 1 = p.seq)
                ELSE false END))
    UNION ALL
    SELECT 'gap-not-empty', a.key, a.seq,
           format('an operator filled the gap at %s, and there is a command %s', a.seq, a.seq),
           '{command_log,skip,operator_action}', '{}', a.seq, a.seq
    FROM action a WHERE a.action = 'fill-gap' AND (
        SELECT true FROM inturn.command_log l
        WHERE l.topic = of_topic AND l.key = a.key AND l.seq = a.seq LIMIT 1) IS NOT NULL
    UNION ALL
    SELECT 'numbering-mixed', k.key, NULL,
           CASE WHEN k.given_key <> k.given
                THEN format('given is %s, where %s', k.given_key,
                            CASE WHEN k.given THEN 'callers number: append would number too'
                            ELSE 'append numbers: it would ask for a number' END)
                ELSE format('arrival is %s, where %s', k.arrival_key, CASE WHEN k.arrival
                            THEN 'appliers number: append would number too'
                            ELSE 'append numbers: it would leave that to an applier' END) END,
           '{key_sequence}', '{}', NULL, NULL
    FROM key k WHERE k.given_key <> k.given OR k.arrival_key <> k.arrival
    UNION ALL
    SELECT 'sequence-row-missing', k.key, NULL, 'its row in key_sequence is missing',
           '{ticket,turn,command_log}', ARRAY[k.turn_epoch], k.last_seq, k.last_seq
    FROM key k WHERE k.sequences IS NULL
    UNION ALL
    SELECT 'sequence-row-repeated', k.key, NULL, 'it has more than one row in key_sequence',
           '{key_sequence}', '{}', NULL, NULL
    FROM key k WHERE k.sequences > 1

    UNION ALL
    SELECT 'history-malformed', k.key, k.history_seq,
           format('its history begins at %s, after epoch %s, and its first turn is of epoch %s and stood at %s',
                  k.history_seq, k.history_epoch, k.first_turn[1], k.first_turn[2]),
           '{key_sequence,turn}', ARRAY[k.history_epoch, k.first_turn[1]], NULL, NULL
    FROM key k WHERE num_nonnulls(k.history_seq, k.history_epoch, k.kept_seq) > 0
      AND (k.history_seq > (SELECT n.base FROM numbers n)
           AND k.first_turn = ARRAY[k.history_epoch, k.history_seq - 1]) IS NOT TRUE
    UNION ALL
    SELECT 'history-left', k.key, l.seq,
           format('%s %s is left from before its history, which begins at %s', l.what, l.seq, k.history_seq),
           '{key_sequence,command_log,skip}', '{}', l.seq, l.seq
    FROM key k CROSS JOIN LATERAL (VALUES
        ('command', CASE WHEN k.first_plain < k.history_seq THEN k.first_plain
                         WHEN k.first_seq < coalesce(k.kept_seq, k.history_seq) THEN k.first_seq END),
        ('skip', (SELECT min(p.lo) FROM passed p
                  WHERE k.history_seq IS NOT NULL AND p.key = k.key AND p.lo < k.history_seq))
    ) l (what, seq) WHERE k.history_seq IS NOT NULL AND l.seq IS NOT NULL

    -- P3
    UNION ALL
    SELECT 'ticket-repeated', k.key, NULL, 'it has more than one ticket: two appliers could be at work on it',
           '{ticket}', '{}', NULL, NULL
    FROM key k WHERE k.tickets > 1
    UNION ALL
    SELECT 'ticket-behind', k.key, k.applied_seq,
           format('its ticket is of epoch %s at %s, its last turn of epoch %s at %s',
                  k.epoch, k.applied_seq, k.turn_epoch, k.turn_seq),
           '{ticket,turn}', ARRAY[k.turn_epoch], NULL, NULL
    FROM key k WHERE k.tickets = 1 AND (k.epoch < k.turn_epoch OR k.applied_seq < k.turn_seq)
    UNION ALL
    SELECT 'mark-stray', m.key, NULL,
           format('it is marked under epoch %s%s', m.epoch,
                  CASE WHEN m.copy > 1 THEN ' twice' ELSE ', and no ticket says so' END),
           '{ticket}', '{}', NULL, NULL
    FROM mark m WHERE NOT EXISTS (
        SELECT FROM key k WHERE k.key = m.key AND k.epoch = m.epoch
          AND k.tickets IS NOT NULL AND k.marked AND m.copy = 1)
    UNION ALL
    SELECT 'mark-missing', k.key, NULL,
           format('its ticket says that it is marked, and under epoch %s it is not', k.epoch),
           '{ticket}', '{}', NULL, NULL
    FROM key k WHERE k.marked AND NOT k.has_marks
    UNION ALL
    SELECT 'cursor-outside', k.key, k.applied_seq,
           format('it stands at %s, the commands are %s to %s', k.applied_seq, k.base + 1, k.last_seq),
           '{ticket,turn}', ARRAY[k.turn_epoch], NULL, NULL
    FROM key k WHERE k.applied_seq < k.base OR k.applied_seq > k.last_seq
    UNION ALL
    -- Of a pruned key, what its witness did before its history begins is not a hole.
    SELECT 'passed-unaccounted', k.key, greatest(c.reached, k.base) + 1,
           format('applied_seq is %s, yet no turn and no skip accounts for %s', k.applied_seq,
                  concat_ws(' to ', greatest(c.reached, k.base) + 1,
                            nullif(least(c.lo - 1, k.applied_seq), greatest(c.reached, k.base) + 1))),
           '{ticket,turn,skip}', ARRAY[c.epoch_before, c.epoch], c.reached, c.lo
    FROM (SELECT c.* FROM cover c CROSS JOIN numbers n WHERE c.lo > coalesce(c.reached, n.base) + 1) c
    JOIN key k USING (key)
    WHERE greatest(c.reached, k.base) < k.applied_seq AND c.lo > greatest(c.reached, k.base) + 1
    UNION ALL
    SELECT 'passed-unaccounted', k.key, k.hi + 1,
           format('applied_seq is %s, yet no turn and no skip accounts for %s', k.applied_seq,
                  concat_ws(' to ', k.hi + 1, nullif(k.applied_seq, k.hi + 1))),
           '{ticket,turn,skip}', ARRAY[k.last_epoch], k.hi, k.applied_seq
    FROM key k WHERE k.hi < k.applied_seq
    UNION ALL
    SELECT 'passed-beyond-cursor', k.key, greatest(m.lo, k.applied_seq + 1),
           format('applied_seq is %s, yet epoch %s %s %s', k.applied_seq, m.epoch,
                  CASE m.kind WHEN 0 THEN 'applied' ELSE 'skipped' END, concat_ws(' to ', m.lo, nullif(m.hi, m.lo))),
           '{ticket,turn,skip}', ARRAY[m.epoch], m.lo, m.hi
    FROM move m JOIN key k USING (key) WHERE k.hi > k.applied_seq AND m.hi > k.applied_seq AND m.kind < 3
    UNION ALL
    SELECT 'passed-twice', c.key, c.lo,
           format('%s was applied or skipped twice, the second time in epoch %s',
                  concat_ws(' to ', c.lo, nullif(least(c.hi, c.reached), c.lo)), c.epoch),
           '{ticket,turn,skip}', ARRAY[c.epoch_before, c.epoch], c.lo, least(c.hi, c.reached)
    FROM cover c WHERE c.lo <= c.reached

    -- P2
    UNION ALL
    SELECT f.violation, w.key, CASE f.violation WHEN 'turn-without-skip' THEN w.hi + 1 ELSE w.lo END,
           -- Here and not among the VALUES: it is worked out for violations only.
           CASE f.violation
               WHEN 'epoch-repeated' THEN format('epoch %s was used more than once', w.epoch)
               WHEN 'epoch-below-one' THEN format('epoch %s is below 1', w.epoch)
               WHEN 'epoch-order' THEN format('epoch %s begins at %s, epoch %s before it at %s',
                   w.epoch, w.lo, w.epoch_before, w.lo_before)
               WHEN 'turn-order' THEN format('epoch %s ended at %s, epoch %s before it at %s',
                   w.epoch, w.ended_at, w.epoch_before, w.ended_before)
               WHEN 'turn-malformed' THEN format('epoch %s cannot be: %s, applied %s to %s, %s error, from %s to %s',
                   w.epoch, w.outcome, w.lo, w.hi, CASE WHEN w.well THEN 'no' ELSE 'an' END, w.started_at, w.ended_at)
               WHEN 'turn-without-skip' THEN format('epoch %s %s %s, and skip does not say so',
                   w.epoch, w.outcome, w.hi + 1)
               ELSE format('%s was skipped in epoch %s by no turn that skipped or cancelled',
                   concat_ws(' to ', w.lo, nullif(w.hi, w.lo)), w.epoch) END,
           '{ticket,turn,skip}', ARRAY[w.epoch_before, w.epoch], w.lo, w.hi
    FROM numbers n CROSS JOIN walk w CROSS JOIN LATERAL (VALUES
        ('epoch-repeated', w.epoch = w.epoch_before
            AND (w.kind = 1 AND w.after_skipping OR w.kind = 3 AND w.kind_before = 2) IS NOT TRUE),
        ('epoch-below-one', w.epoch < CASE w.kind WHEN 3 THEN 0 ELSE 1 END),
        ('epoch-order', w.epoch > w.epoch_before AND w.lo < w.lo_before),
        ('turn-order', w.ended_at < w.ended_before - interval '1 minute'),
        ('turn-malformed', w.kind = 0 AND (
            w.outcome IN ('applied', 'retrying', 'held', 'skipped', 'cancelled', 'lost')
            AND w.well = (w.outcome = 'applied')
            AND w.lo > n.base AND w.hi >= CASE w.outcome WHEN 'applied' THEN w.lo ELSE w.lo - 1 END
            AND w.ended_at >= w.started_at - interval '1 minute') IS NOT TRUE),
        ('turn-malformed', w.kind = 3
            AND (w.well AND w.lo = w.hi + 1 AND w.ended_at >= w.started_at - interval '1 minute') IS NOT TRUE),
        ('turn-without-skip', w.kind = 0 AND w.outcome IN ('skipped', 'cancelled') AND (
            w.epoch_after = w.epoch AND w.kind_after = 1 AND w.lo_after = w.hi + 1
            AND (w.outcome = 'cancelled' OR w.hi_after = w.lo_after)) IS NOT TRUE),
        ('skip-without-turn', w.kind = 1 AND (w.epoch = w.epoch_before AND w.after_skipping) IS NOT TRUE)
    ) f (violation, broken)
    -- What the witness of a pruned key skipped was pruned.
    WHERE f.broken AND NOT (f.violation = 'turn-without-skip' AND (
        SELECT true FROM inturn.key_sequence s
        WHERE s.topic = of_topic AND s.key = w.key
          AND s.history_epoch = w.epoch AND s.history_seq > w.hi + 1 LIMIT 1) IS NOT NULL)
    UNION ALL
    SELECT 'epoch-ahead', k.key, NULL,
           format('the key is at epoch %s, the last one recorded is %s', k.epoch, k.last_epoch),
           '{ticket,turn,skip}', ARRAY[k.turn_epoch, k.last_epoch], k.hi, k.hi
    FROM key k WHERE k.last_epoch > k.epoch

    UNION ALL
    SELECT 'merge-broken', m.key, m.seq,
           format('command %s was merged by %s with those from %s to %s in epoch %s, '
                  'which did not take effect together',
                  m.seq, m.rule, m.from_seq, m.to_seq, m.epoch),
           '{turn,skip,merge_plan}', ARRAY[m.epoch], m.from_seq, m.to_seq
    FROM inturn.merge_plan m CROSS JOIN LATERAL (
        SELECT t.from_seq, t.to_seq FROM inturn.turn t
        WHERE t.topic = m.topic AND t.key = m.key AND t.epoch = m.epoch
          AND m.seq BETWEEN t.from_seq AND t.to_seq OFFSET 0) t
    WHERE m.topic = of_topic AND m.key >= from_key COLLATE "C" AND m.key <= (SELECT b.last_key FROM bound b)
      AND (m.from_seq < t.from_seq OR m.to_seq > t.to_seq OR m.seq NOT BETWEEN m.from_seq AND m.to_seq
           OR m.to_seq = m.from_seq OR m.into_seq <> m.to_seq
           OR m.to_seq - m.from_seq + 1 <> (
               SELECT count(*) FROM inturn.merge_plan o
               WHERE o.topic = m.topic AND o.key = m.key AND o.epoch = m.epoch AND o.seq BETWEEN m.from_seq AND m.to_seq
                 AND (o.from_seq, o.to_seq) = (m.from_seq, m.to_seq) AND o.into_seq IS NOT DISTINCT FROM m.into_seq)
           OR (SELECT true FROM inturn.skip k
               WHERE k.topic = m.topic AND k.key = m.key AND k.seq = m.seq LIMIT 1) IS NOT NULL
           OR (SELECT true FROM inturn.command_log l
               WHERE l.topic = m.topic AND l.key = m.key AND l.seq = m.seq LIMIT 1) IS NULL)

    -- P4
    UNION ALL
    SELECT 'idle-pending', k.key, k.applied_seq + 1,
           format('it is idle with commands pending, from %s to %s: no applier will come',
                  k.applied_seq + 1, k.last_seq),
           '{key_sequence,ticket,command_log}', '{}', k.applied_seq + 1, k.applied_seq + 1
    FROM key k WHERE k.last_seq > k.applied_seq
      AND k.ready_at IS NULL AND k.held_at IS NULL AND k.paused IS NOT TRUE AND k.waiting_at IS NULL
      AND NOT EXISTS (SELECT FROM inturn.wake_hint h WHERE h.topic = of_topic AND h.key = k.key)
    UNION ALL
    SELECT 'waiting-without-gap', k.key, k.applied_seq + 1,
           format('it waits for %s, %s', k.applied_seq + 1, CASE WHEN NOT k.given THEN 'and its callers do not number'
                  WHEN k.last_seq <= k.applied_seq THEN 'and nothing later is there' ELSE 'which is there' END),
           '{key_sequence,ticket,command_log}', '{}', k.applied_seq + 1, k.applied_seq + 1
    FROM key k WHERE k.waiting_at IS NOT NULL AND (NOT k.given OR k.last_seq <= k.applied_seq OR (
        SELECT true FROM inturn.command_log l
        WHERE l.topic = of_topic AND l.key = k.key AND l.seq = k.applied_seq + 1 LIMIT 1) IS NOT NULL
        AND NOT EXISTS (SELECT FROM inturn.wake_hint h WHERE h.topic = of_topic AND h.key = k.key))
    UNION ALL
    SELECT 'lease-malformed', k.key, k.applied_seq + 1,
           format('its lease cannot be: of %s, since %s, until %s%s',
                  coalesce(k.claimed_by, 'nobody'), k.claimed_at, k.lease_until,
                  CASE WHEN k.held_at IS NOT NULL THEN ', and it is held'
                       WHEN k.waiting_at IS NOT NULL THEN ', and it waits' ELSE '' END),
           '{ticket}', '{}', NULL, NULL
    FROM key k WHERE num_nonnulls(k.claimed_by, k.claimed_at, k.lease_until) NOT IN (0, 3)
       OR k.lease_until IS NOT NULL AND (k.held_at IS NOT NULL OR k.waiting_at IS NOT NULL)
    UNION ALL
    SELECT 'lease-unguarded', k.key, k.applied_seq + 1,
           format('%s has it by lease until %s, and it is ready at %s: another applier could claim it',
                  k.claimed_by, k.lease_until, k.ready_at),
           '{ticket}', '{}', NULL, NULL
    FROM key k WHERE k.ready_at < k.lease_until
    UNION ALL
    SELECT 'lease-endless', k.key, k.applied_seq + 1,
           format('%s has it by lease until %s, and it is not ready then: no applier will come',
                  k.claimed_by, k.lease_until),
           '{ticket}', '{}', NULL, NULL
    FROM key k WHERE k.lease_until IS NOT NULL AND k.ready_at IS NULL AND k.paused IS NOT TRUE
    UNION ALL
    SELECT CASE WHEN k.held_at IS NOT NULL THEN 'held-and-ready' ELSE 'paused-and-ready' END, k.key, k.applied_seq + 1,
           format('it is %s, and ready at %s',
                  CASE WHEN k.held_at IS NOT NULL THEN 'held' ELSE 'paused for good' END, k.ready_at),
           '{ticket}', '{}', NULL, NULL
    FROM key k WHERE k.ready_at IS NOT NULL AND (k.held_at IS NOT NULL OR k.paused)
    UNION ALL
    SELECT 'ticket-endless', k.key, k.applied_seq + 1,
           'it has a ticket that is never ready, and is not held, waiting or paused for good',
           '{ticket}', '{}', NULL, NULL
    FROM key k WHERE k.tickets IS NOT NULL AND k.ready_at IS NULL AND k.paused IS NOT TRUE
      AND num_nonnulls(k.held_at, k.waiting_at, k.lease_until) = 0
    UNION ALL
    SELECT 'idle-undrained', k.key, k.applied_seq,
           'it has no ticket, and no last turn that says that it went idle: its next command will not wake it',
           '{key_sequence,turn}', ARRAY[k.turn_epoch], NULL, NULL
    FROM key k WHERE k.tickets IS NULL AND k.sequences IS NOT NULL AND k.drained IS NOT TRUE
      -- Where callers number, a key is looked at with every append; it may only not have lost where its numbers begin.
      AND (NOT k.given OR k.turn_epoch IS NULL AND k.base <> 0)

    UNION ALL
    SELECT 'arrival-stuck', i.key, NULL,
           format('command %L arrived at %s and has no number, and no applier''s pass will look at it again',
                  i.name, i.created_at),
           '{key_sequence,intake}', '{}', NULL, NULL
    FROM inturn.intake i CROSS JOIN numbers n
    LEFT JOIN inturn._last_arrival_pass(of_topic) p ON true
    WHERE i.topic = of_topic AND i.key >= from_key COLLATE "C" AND i.key <= (SELECT b.last_key FROM bound b)
      AND (NOT n.arrival OR i.left_because IS NULL AND i.xid < pg_snapshot_xmax(p.seen) AND i.xid <> ALL (p.own)
           AND pg_visible_in_snapshot(i.xid, p.seen))

    -- The operators.
    UNION ALL
    SELECT CASE WHEN a.action IS NULL THEN 'skip-without-action' ELSE 'action-without-skip' END, a.key, a.lo,
           CASE WHEN a.action IS NULL THEN format('an operator skipped %s in epoch %s, and no action says so',
                                                  concat_ws(' to ', a.lo, nullif(a.hi, a.lo)), a.epoch)
                ELSE format('an operator''s %s of %s is recorded, and skip does not have what it skipped',
                            a.action, a.lo) END,
           '{ticket,skip,operator_action}', '{}', a.lo, a.hi
    FROM acted a
    UNION ALL
    SELECT 'replay-missing', a.key, a.seq,
           format('an operator replayed %s as %s, and the log has no such command', a.seq, a.after ->> 'seq'),
           '{operator_action,command_log}', '{}', a.seq, a.seq
    -- Looked up one by one: as NOT EXISTS it would be a join that reads the whole topic.
    FROM action a WHERE a.action = 'replay' AND (
        SELECT true FROM inturn.command_log l WHERE l.topic = of_topic AND l.key = a.key
          AND l.idempotency_key = 'inturn.replay:' || a.seq AND to_jsonb(l.seq) = a.after -> 'seq' LIMIT 1) IS NULL
    UNION ALL
    SELECT 'amend-missing', a.key, a.seq, format('an operator amended %s, and the log has it otherwise', a.seq),
           '{operator_action,command_log}', '{}', a.seq, a.seq
    FROM action a WHERE a.action = 'amend' AND a.latest AND (
        SELECT true FROM inturn.command_log l WHERE l.topic = of_topic AND l.key = a.key AND l.seq = a.seq
          AND jsonb_build_object('name', l.name, 'payload', l.payload) = a.after LIMIT 1) IS NULL
    UNION ALL
    SELECT 'replay-without-action', l.key, l.seq, format('command %s is a replay, and no action says so', l.seq),
           '{command_log}', '{}', l.seq, l.seq
    FROM inturn.command_log l
    WHERE l.topic = of_topic AND l.key >= from_key COLLATE "C" AND l.key <= (SELECT b.last_key FROM bound b)
      AND l.idempotency_key >= 'inturn.replay:' AND l.idempotency_key < 'inturn.replay;'
      AND NOT EXISTS (SELECT FROM action a
                      WHERE a.action = 'replay' AND a.key = l.key AND a.after -> 'seq' = to_jsonb(l.seq))
      AND (SELECT true FROM inturn.key_sequence s
           WHERE s.topic = of_topic AND s.key = l.key AND s.history_seq > l.seq LIMIT 1) IS NULL
)
SELECT f.violation, of_topic, f.key, f.seq, f.says, inturn._verify_rows(of_topic, f.key, f.tables, f.epochs, f.lo, f.hi)
FROM finding f ORDER BY f.key COLLATE "C", f.violation, f.seq
$$;
COMMENT ON FUNCTION inturn.verify IS 'Recomputes the promises from what is stored, and returns a row a violation.';
