CREATE FUNCTION inturn.merge_preview(topic text, first text DEFAULT NULL, "then" text DEFAULT NULL,
                                     becomes text DEFAULT NULL)
RETURNS TABLE (rule text, keys bigint, merged bigint, pending bigint, remaining bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
-- Says what the merge rules of a topic would make of the commands that are pending now, and changes nothing.
--
-- first, then, becomes: a rule that the topic does not have yet, to be tried beside those that it has.
-- A row a rule that would merge something: of how many keys, and how many numbers. The last row has no rule: of all
-- keys, how many commands are pending, how many are merged, and how many the handlers would get.
-- Turn by turn, as appliers would read them; keys that are held or retrying, of whose next command nobody knows what
-- became, and commands that are amended or replayed count as they are. Merge functions are not called.
-- Reads all that is pending on the topic. Takes no locks. Raises IT001, IT014, and what _check_merge_rule raises.
DECLARE
    settings inturn.topic;
    rules jsonb;
    each record; at_seq bigint; epoch bigint; read bigint; entries inturn.merge_plan[];
    numbers jsonb := '{}'; key_counts jsonb := '{}'; seen jsonb; counted record;
BEGIN
    PERFORM inturn._require_grant(topic, 'operator');
    SELECT * INTO settings FROM inturn.topic t WHERE t.name = merge_preview.topic;
    IF NOT FOUND THEN
        PERFORM inturn._refuse_topic(topic);
    END IF;
    rules := inturn._merge_rules(topic);
    IF num_nonnulls(first, "then", becomes) > 0 THEN
        PERFORM inturn._check_merge_rule(topic, first, "then", becomes);
        rules := rules || jsonb_build_object(jsonb_build_array(first, "then")::text, becomes);
    END IF;
    keys := 0; merged := 0; pending := 0; remaining := 0;
    FOR each IN SELECT c.* FROM inturn.ticket t
    JOIN inturn.key_cursor c ON c.topic = t.topic AND c.key = t.key AND c.epoch = t.epoch
                WHERE t.topic = merge_preview.topic LOOP
        at_seq := each.applied_seq; seen := '{}';
        epoch := CASE WHEN each.attempts = 0 AND each.lost = 0 THEN each.epoch + 1 END;
        LOOP
            SELECT count(*) INTO read FROM inturn._next_commands(topic, each.key, at_seq, settings.batch_commands);
            EXIT WHEN read = 0;
            entries := (inturn._fold_merges(settings, each.key, at_seq, epoch, settings.batch_commands, rules,
                                            false)).entries;
            FOR counted IN SELECT e.rule, count(*) AS n FROM unnest(entries) e GROUP BY e.rule LOOP
                numbers := numbers || jsonb_build_object(counted.rule,
                                                         coalesce((numbers ->> counted.rule)::bigint, 0) + counted.n);
                seen := seen || jsonb_build_object(counted.rule, 1);
            END LOOP;
            merged := merged + cardinality(entries);
            pending := pending + read;
            remaining := remaining + read
                - (SELECT count(*) FROM unnest(entries) e WHERE e.into_seq IS DISTINCT FROM e.seq);
            at_seq := at_seq + read; epoch := NULL;
        END LOOP;
        keys := keys + CASE WHEN seen <> '{}' THEN 1 ELSE 0 END;
        SELECT key_counts || coalesce(jsonb_object_agg(s, coalesce((key_counts ->> s)::bigint, 0) + 1), '{}')
        INTO key_counts
        FROM jsonb_object_keys(seen) s;
    END LOOP;
    RETURN QUERY SELECT n.key, (key_counts ->> n.key)::bigint, n.value::bigint, NULL::bigint, NULL::bigint
                 FROM jsonb_each_text(numbers) n ORDER BY n.value::bigint DESC, n.key;
    RETURN QUERY SELECT NULL::text, merge_preview.keys, merge_preview.merged, merge_preview.pending,
                        merge_preview.remaining;
END
$$;
COMMENT ON FUNCTION inturn.merge_preview IS
    'What the merge rules of a topic would make of the commands that are pending now.';
