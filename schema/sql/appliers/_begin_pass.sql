-- Finds the topics that have ready keys, in one statement, and where a pass over each may begin; the longest ready
-- first.
-- Internal to _begin_saved_pass.
--
-- last: what the applier's pass before returned, over the same topics; NULL: the first one.
-- found, starts: the topics, and from when on to claim there: nothing that can be seen is older. due: when the next key
-- of a topic that is not among them is ready, if that is within a second. The rest is for the next pass.
--
-- A pass must not walk over what turns before it left in the index: with a snapshot held for ten minutes, millions of
-- entries.
-- It may begin at the first ticket that can be seen (hands), or at safe_at if that is earlier: no ticket of before
-- safe_at can come to be seen. For a ticket that cannot be seen yet belongs to a transaction that is still open, and it
-- is made after that got its number: so it is younger than next_at, when every number above next_xid was still to be
-- given, if all transactions up to next_xid have ended. A snapshot that is held does not keep them from that.
-- A transaction with a number that is open for long does, and then that walk gets longer with every turn. So it is made
-- again only when twenty times as long has passed as it took (walk_at), or when nothing else is ready: it costs a busy
-- applier a twentieth of its time at most, and a key whose caller commits late waits so long. The passes between begin
-- where the last one found the first ticket (starts), or at the time up to which it looked (seen_to).
-- next_xid is a number of its own: the xmax of a snapshot is above every transaction that has ended, not above those
-- that run.
-- That trusts the clock not to be set back; where it was, and every minute, a pass begins at the very first entry.
-- A transaction that has a number already cannot tell, and leaves safe_at where it was.
-- No pass looks further than a second ahead: the leases that were given back lie there.
-- The caller commits at once. Raises IT014 for a topic that is granted to other appliers only. Locks what
-- _number_arrivals and _take_hints lock.
CREATE FUNCTION inturn._begin_pass(topics text[], last inturn._pass) RETURNS inturn._pass
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
-- Before 18, what is off costs so much that the statement would be compiled.
SET jit = off
AS $$
DECLARE
    -- Before this transaction takes a number: every higher one is given later.
    now constant timestamptz := clock_timestamp();
    snapshot constant pg_snapshot := pg_current_snapshot();
    numbered constant boolean := pg_current_xact_id_if_assigned() IS NOT NULL;
    pass inturn._pass := last;
    -- From when on a walk looks: what has come to be seen since the last one may be older than the new safe_at.
    since timestamptz := last.walked_from;
    until timestamptz;
    walks boolean; known inturn._pass;
BEGIN
    PERFORM inturn._require_grant(g.topic, 'applier') FROM inturn.topic_grant g
    WHERE g.topic = ANY (topics) AND g.role = 'applier';
    IF pass.next_xid IS NULL OR now < pass.next_at OR now >= pass.whole_at THEN
        pass := ROW('{}'::text[], '{}'::timestamptz[], NULL, now, '-infinity', '-infinity', now,
                    CASE WHEN NOT numbered THEN pg_current_xact_id() END, 'infinity', '{}'::timestamptz[], '-infinity',
                    '-infinity', '-infinity');
        since := '-infinity';
    ELSIF pg_snapshot_xmin(snapshot) > pass.next_xid AND NOT numbered THEN
        pass.safe_at := pass.next_at;
        pass.next_at := now; pass.next_xid := pg_current_xact_id();
    END IF;
    pass.looked_at := now;
    PERFORM inturn._number_arrivals(topics);
    PERFORM inturn._take_hints(topics, pass.hint_at);
    -- Hints that are left, because somebody else has the key in hand or one look takes no more, are looked for again.
    pass.hint_at := least(pass.safe_at, (
        SELECT h.left_at FROM inturn.wake_hint h
        WHERE h.left_at >= pass.hint_at AND h.topic = ANY (topics) ORDER BY h.left_at LIMIT 1));

    known := pass;
    walks := now >= pass.walk_at;
    LOOP
        IF walks THEN
            pass.walked_from := pass.safe_at;
        END IF;
        -- A statement of its own: its snapshot is newer than the one above. And one time for all its parts.
        until := clock_timestamp();
        SELECT coalesce(array_agg(f.topic ORDER BY f.ready_at) FILTER (WHERE f.ready_at <= until), '{}'),
               coalesce(array_agg(least(f.ready_at, pass.walked_from) ORDER BY f.ready_at)
                        FILTER (WHERE f.ready_at <= until), '{}'),
               coalesce(array_agg(f.ready_at ORDER BY f.ready_at) FILTER (WHERE f.ready_at <= until), '{}'),
               min(f.ready_at) FILTER (WHERE f.ready_at > until)
        INTO pass.found, pass.hands, pass.starts, pass.due
        FROM (SELECT t.topic, (SELECT c.ready_at FROM inturn.ticket c
                               WHERE c.topic COLLATE "POSIX" = t.topic AND c.ready_at <= until + interval '1 s'
                                 AND c.ready_at >= coalesce(h.hand, CASE WHEN walks THEN since ELSE known.seen_to END)
                               ORDER BY c.ready_at LIMIT 1) AS ready_at
              FROM unnest(topics) t (topic)
              LEFT JOIN unnest(known.found, CASE WHEN walks THEN known.hands ELSE known.starts END) h (topic, hand)
                ON h.topic = t.topic
              OFFSET 0) f;  -- or each use of ready_at would be a look of its own
        -- Only a walk can tell that nothing is ready.
        EXIT WHEN walks OR pass.found <> '{}';
        walks := true;
    END LOOP;
    pass.seen_to := until;
    IF walks THEN
        -- A walk of some milliseconds is not worth saving.
        pass.walk_at := CASE WHEN clock_timestamp() - until < interval '5 ms' THEN '-infinity'
                             ELSE clock_timestamp() + (clock_timestamp() - until) * 20 END;
    END IF;
    IF since = '-infinity' THEN
        pass.whole_at := now + greatest(interval '1 minute', (clock_timestamp() - now) * 100);
    END IF;
    RETURN pass;
END
$$;
COMMENT ON FUNCTION inturn._begin_pass IS
    'Internal to the appliers: the topics that have ready keys, and where a pass over each may begin.';
