CREATE FUNCTION inturn.list_keys(
    of_topic text DEFAULT NULL, of_state text DEFAULT NULL, max_keys integer DEFAULT 50,
    of_like text DEFAULT NULL, older_than interval DEFAULT NULL, min_lag bigint DEFAULT NULL, sort_by text DEFAULT NULL,
    of_error text DEFAULT NULL
) RETURNS TABLE (
    topic text, key text, state text, applied_seq bigint, last_seq bigint, pending bigint,
    oldest_pending_at timestamptz, attempts integer, ready_at timestamptz, held_at timestamptz, last_error text,
    paused_at timestamptz, paused_until timestamptz, topic_paused boolean,
    waiting_at timestamptz, claimed_by text, lease_until timestamptz
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET enable_sort = off
SET jit = off
AS $$
-- Lists keys and where they stand, the worst first: held, waiting (the longest first), retrying (the next attempt
-- soonest first), paused, leased (the lease that ends soonest first), ready and arrived (the longest
-- first), idle. Takes no locks.
--
-- of_topic, of_state: NULL for all; several states are separated by commas. of_like: a LIKE pattern that the key
-- matches.
-- older_than: the next command was appended at least this long ago. min_lag: at least this many commands are pending.
-- of_error: a LIKE pattern that the first line of its error matches, see list_errors.
-- sort_by: lag, age (of the next command) or attempts, the greatest first.
-- state: see key_state; or arrived: all that is pending on the key has no number yet, and pending counts that.
-- What its topic does, topic_paused says. pending counts commands that are committed and not
-- applied; oldest_pending_at is when the next one was appended; last_error is of its latest attempt. Where callers
-- number, the next one may be missing: pending counts what is there, and oldest_pending_at is the first that came of
-- it. A key of which only a hint tells that something was appended is listed as what the next applier will find, ready
-- since then, or waiting: see _hinted_keys.
-- waiting_at: since when it is missing. claimed_by, lease_until: who had or has the key by lease.
--
-- Each state is read from its own index, and only as far as max_keys: quick with millions of keys. No index knows ages,
-- lags and errors. So a filter by one of them, and an order by lag, look at each key of the first 200,000 of a state in
-- each topic, or max_keys, and a WARNING says so where that is not all. Among those every filter is exact, and so are
-- the orders by attempts and by lags over 32.
-- Sorted by age or lesser lags it is exact while no state but idle has more than 20,000 keys that pass the filters;
-- beyond, it is that of the worst 20,000 of each such state, and a WARNING says so.
-- No index lists the idle keys: they are looked for among the first 50,000 keys of a topic, or max_keys, of those that
-- begin as of_like does, and a WARNING says so where that is not all and too few were found.
-- max_keys NULL lists all, and looks at all, however long that takes.
-- Topics that are granted to other operators only are left out. Raises IT044 for a state or sort_by that does not
-- exist, and IT014 for a topic that is granted to other operators only.
DECLARE
    ranks constant text[] := '{held,waiting,retrying,paused,leased,ready,arrived,idle}';
    hidden constant text[] := inturn._hidden_topics();
    deep_lag constant bigint := 32;
    states text[] := coalesce(string_to_array(of_state, ','), ranks);
    now constant timestamptz := clock_timestamp(); appended_by timestamptz;
    most bigint; look bigint[]; listed bigint := 0; passing bigint;
    bounded boolean := false; parts text[] := '{}'; part text; deep text[]; unwoken jsonb;
    details constant text := $query$
        SELECT c.topic, c.key, c.state, c.applied_seq, l.last_seq,
               coalesce(c.arrived, CASE t.numbering WHEN 'given' THEN g.pending ELSE l.last_seq - c.applied_seq END),
               coalesce(c.arrived_at, g.first_at, o.created_at),
               c.attempts, c.ready_at, c.held_at, c.last_error, c.paused_at, c.paused_until,
               t.paused_at IS NOT NULL AND $7 < coalesce(t.paused_until, 'infinity'),
               c.waiting_at, c.claimed_by, c.lease_until
        FROM (%s) c
        JOIN inturn.topic t ON t.name = c.topic
        CROSS JOIN LATERAL (
            SELECT greatest(c.applied_seq, (SELECT max(l.seq) FROM inturn.command_log l
                                            WHERE l.topic = c.topic AND l.key = c.key)) AS last_seq) l
        LEFT JOIN inturn.command_log o ON o.topic = c.topic AND o.key = c.key AND o.seq = c.applied_seq + 1
        CROSS JOIN LATERAL (
            SELECT count(*) AS pending, min(l.created_at) AS first_at FROM inturn.command_log l
            WHERE t.numbering = 'given' AND l.topic = c.topic AND l.key = c.key AND l.seq > c.applied_seq) g
        ORDER BY %s array_position($9, c.state), c.at, c.key, c.topic LIMIT $10$query$;
BEGIN
    PERFORM inturn._require_grant(of_topic, 'operator');
    max_keys := CASE WHEN max_keys < 0 THEN 0 ELSE max_keys END;
    -- It is added to a number.
    min_lag := CASE WHEN min_lag > 1000000000000000000 THEN 1000000000000000000 ELSE min_lag END;
    most := max_keys + greatest(20000 - max_keys, 0); -- NULL: all
    look := ARRAY[CASE WHEN sort_by = 'lag' OR num_nonnulls(older_than, min_lag, of_error) > 0
                       THEN max_keys + greatest(200000 - max_keys, 0) END, max_keys + greatest(50000 - max_keys, 0)];
    IF NOT states <@ ranks OR states = '{}' THEN
        RAISE EXCEPTION USING ERRCODE = 'IT044', MESSAGE = format('there is no state %L', of_state),
            HINT = 'Give one of held, waiting, retrying, paused, leased, ready, arrived, idle, or several with commas '
                   'between them.';
    ELSIF sort_by NOT IN ('lag', 'age', 'attempts') THEN
        RAISE EXCEPTION USING ERRCODE = 'IT044', MESSAGE = format('keys cannot be sorted by %L', sort_by),
            HINT = 'Give lag, age or attempts.';
    ELSIF older_than NOT BETWEEN '-1000 years' AND '1000 years' THEN
        RAISE EXCEPTION USING ERRCODE = 'IT044', MESSAGE = format('no key can be older than %s', older_than),
            HINT = 'Give at most 1000 years.';
    END IF;
    appended_by := now - older_than;
    states := ARRAY(SELECT s FROM unnest(ranks) s WHERE s = ANY (states)
                    -- Nothing is pending on an idle key (P4), and it has no error.
                    AND (s <> 'idle' OR coalesce(min_lag, 0) <= 0 AND num_nonnulls(older_than, of_error) = 0));
    IF states = '{}' OR max_keys = 0 THEN
        RETURN;
    END IF;

    deep := ARRAY(SELECT inturn._keys_query(s, '', true, hidden, look) FROM unnest(states) s WHERE s <> 'idle');
    IF sort_by IS NULL THEN
        -- State by state: the search for an idle key must not begin while there are others to list.
        FOREACH state IN ARRAY states LOOP
            RETURN QUERY EXECUTE format(details, inturn._keys_query(state, hidden => hidden, look => look), '')
            USING of_topic, of_like, min_lag, appended_by, max_keys - listed, of_error, now,
                  inturn._unwoken_keys(of_topic, ARRAY[state]), ranks, max_keys - listed;
            GET DIAGNOSTICS passing = ROW_COUNT;
            listed := listed + passing;
            EXIT WHEN listed >= max_keys;
            PERFORM inturn._warn_of_more(of_topic, of_like, hidden, state, look);
        END LOOP;
        RETURN;
    END IF;

    unwoken := inturn._unwoken_keys(of_topic, states);
    IF min_lag > deep_lag THEN
        parts := deep;
    ELSE
        most := CASE sort_by WHEN 'attempts' THEN max_keys ELSE most END;
        FOREACH state IN ARRAY states LOOP
            part := inturn._keys_query(
                state, CASE WHEN sort_by = 'attempts' AND state NOT IN ('ready', 'arrived', 'idle')
                            THEN 'f.attempts DESC,' ELSE '' END, hidden => hidden, look => look);
            IF state = 'idle' THEN
                EXIT WHEN listed >= max_keys; -- they come last
                part := part || 'LIMIT $10';
            ELSE
                EXECUTE format('SELECT count(*) FROM (%s LIMIT $5) c', part)
                INTO passing USING of_topic, of_like, min_lag, appended_by, most + 1, of_error, now, unwoken;
                listed := listed + passing;
                bounded := bounded OR passing > most AND sort_by <> 'attempts';
            END IF;
            parts := parts || part;
        END LOOP;
        parts := parts || CASE WHEN bounded AND sort_by = 'lag' THEN deep ELSE '{}' END;
    END IF;
    FOR topic, key, state, applied_seq, last_seq, pending, oldest_pending_at, attempts, ready_at, held_at, last_error,
        paused_at, paused_until, topic_paused, waiting_at, claimed_by, lease_until
    IN EXECUTE format(details, '(' || array_to_string(parts,
                                          CASE WHEN bounded THEN ') UNION (' ELSE ') UNION ALL (' END) || ')',
                      CASE sort_by WHEN 'lag' THEN 'coalesce(c.arrived, CASE t.numbering WHEN ''given'' THEN g.pending '
                                                        'ELSE l.last_seq - c.applied_seq END) DESC,'
                                   WHEN 'age' THEN 'coalesce(c.arrived_at, g.first_at, o.created_at),'
                                   WHEN 'attempts' THEN 'c.attempts DESC,' END)
    USING of_topic, of_like, min_lag, appended_by, most, of_error, now, unwoken, ranks, max_keys
    LOOP
        RETURN NEXT;
        listed := listed + (state = 'idle')::integer;
    END LOOP;
    PERFORM inturn._warn_of_more(of_topic, of_like, hidden, s, look) FROM unnest(states) s
    WHERE s <> 'idle' OR listed < max_keys;
    IF bounded AND (sort_by = 'age' OR pending <= deep_lag) THEN
        RAISE WARNING USING MESSAGE = format('more than %s keys of a state: sorted among the worst %s of each',
                                             most, most);
    END IF;
END
$$;
COMMENT ON FUNCTION inturn.list_keys IS 'Lists keys and where they stand, the worst first.';
