-- Merges the next commands of a key by the rules of its topic: returns an entry for each number that is merged, or what
-- went wrong. Internal to _plan_merges and merge_preview. Takes no locks.
--
-- From left to right, on a stack: while the two on top follow each other, number by number, and there is a rule for
-- their names, they become one or none. Every merge leaves fewer commands, so this ends, whatever the rules.
-- rules: from the pair of names to what it becomes; see _merge_rules. may_call: false: the functions are not called,
-- and payloads are not what they would be, and the key need not be in hand. What is merged has the number of its last
-- command.
CREATE FUNCTION inturn._fold_merges(
    settings inturn.topic, key text, applied_seq bigint, epoch bigint, max_commands integer, rules jsonb,
    may_call boolean,
    OUT entries inturn.merge_plan[], OUT problem text
)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    stack inturn.command[] := '{}'; starts bigint[] := '{}'; fixed boolean[] := '{}'; depth integer := 0;
    made text[] := '{}'; -- by which rule each number was merged last, from applied_seq on
    changed boolean[] := '{}'; gone_from bigint[] := '{}'; gone_to bigint[] := '{}';
    reading refcursor; command record; becomes text; first inturn.command; second inturn.command;
BEGIN
    IF may_call THEN
        OPEN reading FOR SELECT * FROM inturn._commands_to_merge(settings.name, key, applied_seq, epoch, max_commands);
    ELSE
        OPEN reading FOR SELECT * FROM inturn._mergeable_commands(settings.name, key, applied_seq, epoch, max_commands);
    END IF;
    LOOP
        FETCH reading INTO command;
        EXIT WHEN NOT FOUND;
        depth := depth + 1;
        stack[depth] := ROW(settings.name, key, command.seq, command.name, command.payload, command.created_at,
                            1)::inturn.command;
        starts[depth] := command.seq; fixed[depth] := command.fixed; changed[depth] := false;
        WHILE depth > 1 LOOP
            first := stack[depth - 1]; second := stack[depth];
            becomes := rules ->> jsonb_build_array(first.name, second.name)::text;
            EXIT WHEN becomes IS NULL OR fixed[depth - 1] OR fixed[depth] OR first.seq + 1 <> starts[depth];
            made[second.seq - applied_seq] := format('%s + %s -> %s', first.name, second.name, becomes);
            made[first.seq - applied_seq] := made[second.seq - applied_seq];
            IF becomes = 'nothing' THEN
                gone_from := gone_from || starts[depth - 1]; gone_to := gone_to || second.seq;
                depth := depth - 2;
                EXIT;
            ELSIF becomes <> 'last' THEN
                IF may_call THEN
                    SELECT * INTO second.payload, problem
                    FROM inturn._call_merge(becomes, first, second, settings.max_payload_bytes);
                    IF problem IS NOT NULL THEN
                        CLOSE reading;
                        RETURN;
                    END IF;
                END IF;
                second.name := first.name;
                changed[depth] := true;
            END IF;
            stack[depth - 1] := second; changed[depth - 1] := changed[depth];
            depth := depth - 1;
        END LOOP;
    END LOOP;
    CLOSE reading;
    entries := ARRAY(
        SELECT ROW(settings.name, key, epoch, n, g.from_seq, g.to_seq, CASE WHEN g.place > 0 THEN g.to_seq END,
                   made[n - applied_seq],
                   CASE WHEN n = g.to_seq AND changed[g.place] THEN stack[g.place].name END,
                   CASE WHEN n = g.to_seq AND changed[g.place] THEN stack[g.place].payload END)::inturn.merge_plan
        FROM (SELECT starts[place] AS from_seq, stack[place].seq AS to_seq, place FROM generate_series(1, depth) place
              UNION ALL SELECT u.from_seq, u.to_seq, 0 FROM unnest(gone_from, gone_to) u (from_seq, to_seq)) g
        CROSS JOIN LATERAL generate_series(g.from_seq, g.to_seq) n
        WHERE g.from_seq < g.to_seq);
END
$$;
COMMENT ON FUNCTION inturn._fold_merges IS 'Internal: merges the next commands of a key by the rules of its topic.';
