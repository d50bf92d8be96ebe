-- Every privilege, in one place. Nothing here is granted to PUBLIC.
REVOKE ALL ON SCHEMA inturn FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA inturn FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA inturn FROM PUBLIC;
REVOKE ALL ON ALL ROUTINES IN SCHEMA inturn FROM PUBLIC;
-- Nor to whom the owner lets have all that it makes (ALTER DEFAULT PRIVILEGES). The receiver's guard may have been here
-- before.
DO $$
DECLARE
    given record;
BEGIN
    FOR given IN
        SELECT o.kind, o.name, a.grantee::regrole AS grantee FROM (
            SELECT 'TABLE' AS kind, c.oid::regclass::text AS name, c.relnamespace AS schema, c.relname AS bare,
                   c.relowner AS owner, c.relacl AS acl
            FROM pg_class c WHERE c.relkind IN ('r', 'p', 'v', 'S')
            UNION ALL
            SELECT 'ROUTINE', p.oid::regprocedure::text, p.pronamespace, p.proname, p.proowner, p.proacl
            FROM pg_proc p) o
        CROSS JOIN LATERAL (SELECT DISTINCT g.grantee FROM aclexplode(o.acl) g WHERE g.grantee <> o.owner) a
        WHERE o.schema = (SELECT t.relnamespace FROM pg_class t WHERE t.oid = 'inturn.topic'::regclass)
          AND o.bare NOT IN ('accept', 'accepted', 'receiver_version') AND a.grantee <> 0
    LOOP
        EXECUTE format('REVOKE ALL ON %s %s FROM %s', given.kind, given.name, given.grantee);
    END LOOP;
    FOR given IN
        SELECT DISTINCT a.grantee::regrole AS grantee
        FROM pg_namespace n CROSS JOIN LATERAL aclexplode(n.nspacl) a
        WHERE n.oid = (SELECT t.relnamespace FROM pg_class t WHERE t.oid = 'inturn.topic'::regclass)
          AND a.privilege_type = 'CREATE' AND a.grantee NOT IN (0, n.nspowner)
    LOOP
        EXECUTE format('REVOKE CREATE ON SCHEMA inturn FROM %s', given.grantee);
    END LOOP;
END
$$;

GRANT USAGE ON SCHEMA inturn TO inturn_caller, inturn_applier, inturn_operator, inturn_admin;
GRANT SELECT ON inturn.schema_version TO inturn_caller, inturn_applier, inturn_operator, inturn_admin;
GRANT EXECUTE ON FUNCTION inturn._revision() TO inturn_caller, inturn_applier, inturn_operator, inturn_admin;
GRANT SELECT ON inturn.compatible_since TO inturn_caller, inturn_applier, inturn_operator, inturn_admin;

-- A caller appends and nothing more. The view reads as empty; RETURNING needs the SELECT.
GRANT EXECUTE ON FUNCTION
    inturn.append(text, text, text, jsonb, text, bigint),
    inturn.append_many(text, text[], text[], jsonb[], text[]),
    inturn.progress(text, text)
TO inturn_caller;
-- Whoever waits sees where keys stand, and no payload and no error of anybody.
GRANT EXECUTE ON FUNCTION
    inturn.wait(text, text, bigint, interval, text),
    inturn.wait_state(text, text, bigint, text, bigint),
    inturn.announce_wait(text, text)
TO inturn_caller, inturn_operator;
GRANT SELECT, INSERT ON inturn.outbox TO inturn_caller;

-- An applier has no right to any table: the steps of its protocol run as the schema's owner, and its targets run as
-- itself.
GRANT EXECUTE ON ROUTINE
    -- In one transaction.
    inturn.claim(text, timestamptz, integer),
    inturn.claim_commands(text, timestamptz, integer),
    inturn.finish(text, text[], bigint[], bigint[], bigint[], text),
    inturn._finish(text, text[], bigint[], bigint[], bigint[], text),
    inturn.fail(text, text, bigint, bigint, bigint, text, text, text, interval, interval),
    inturn._count_skipped(text, text, bigint, bigint),
    inturn._fail_outages(text, jsonb, text),
    inturn._lock_ticket(text, text, bigint),
    inturn._keep_alone(text, text, bigint),
    inturn._took_long(text, text[], bigint[], integer[]),
    inturn._require_read_committed(),
    inturn._check_effects(),
    inturn._close_cursors(),
    inturn._read_verdict(text, text),
    -- By lease, and alone.
    inturn.claim(text[], integer, interval, text),
    inturn._check_lease(text[], interval),
    inturn._claim_leases(text[], integer, interval, text, boolean),
    inturn._claim_small(text, integer, text, bigint),
    inturn._first_merged(inturn.topic, text, bigint, bigint, integer, bigint),
    inturn._lease_claimed(text, text, bigint, interval, text, boolean, bigint),
    inturn._max_claim_octets(),
    inturn.advance(text, text, bigint, bigint, interval),
    inturn.renew(text, text, bigint, interval),
    inturn.release(text, text, bigint),
    inturn.fail(text, text, bigint, bigint, text, jsonb),
    inturn._record_progress(text[], text[], bigint[], bigint[], boolean[]),
    inturn._claim_alone(text, timestamptz, text),
    inturn._hold_lease(text, text, bigint),
    inturn._hold_alone(text, text, bigint),
    inturn._take_alone(text, text, bigint, integer),
    inturn._end_alone(text, text, bigint, bigint, text, text, interval, interval),
    inturn._end_turn_alone(text, text, bigint, bigint, text, text, interval, interval),
    inturn._lose_alone(text, text, bigint, text, boolean),
    inturn._blame_alone(text, text, bigint, text),
    -- Where the topic has merge rules; what merges runs as the applier.
    inturn._settings_of(text),
    inturn._merge_rules(text),
    inturn._merge_function(text),
    inturn._merge_functions(text),
    inturn._trusted_merge(text, text, text),
    inturn._require_merges(inturn.topic),
    inturn._call_merge(text, inturn.command, inturn.command, integer),
    inturn._commands_to_merge(text, text, bigint, bigint, integer),
    inturn._fold_merges(inturn.topic, text, bigint, bigint, integer, jsonb, boolean),
    inturn._save_merges(text, text, bigint, inturn.merge_plan[]),
    inturn._plan_merges(inturn.topic, text, bigint, bigint, integer),
    inturn._plan_batch(inturn.topic, text[], bigint[], bigint[], integer[], integer, text),
    inturn._plan_alone(inturn.topic, inturn.key_cursor, integer),
    inturn._planned_end(text, text, bigint, bigint),
    -- With a SQL target.
    inturn.apply(text[], double precision, integer, bigint, bigint),
    inturn._visit_topic(text, timestamptz, timestamptz, integer, text, text[], bigint, bigint, boolean,
                        double precision, integer, jsonb),
    inturn._visit_alone(text, timestamptz, text, text[], bigint, bigint, integer, jsonb),
    inturn._keep_settings(text[]),
    inturn._reset_session(text[], text[]),
    inturn.apply_batch(text, timestamptz, integer, text, boolean, boolean),
    inturn._apply_key(text, text, bigint, bigint, integer, integer, inturn.topic, text, boolean),
    inturn._apply_alone(text, text, bigint, boolean, integer),
    inturn._turn_commands(text, text[], bigint[], bigint[], integer),
    inturn._sql_topic(text),
    inturn._sql_topics(text[]),
    inturn._careful_keys(text[], text, integer),
    inturn._end_applier(text),
    inturn._note_careful(text, text[], integer[]),
    inturn._list_sessions(text),
    inturn._leave_at(text[]),
    inturn._begin_until(),
    inturn._seconds_per_key(double precision, double precision, interval, integer),
    inturn._target_function(text, text),
    inturn._function_name(text),
    inturn._target_query(inturn.topic, text, regprocedure),
    inturn._trusted_target(inturn.topic),
    inturn._require_target(inturn.topic),
    inturn._target_refusal(inturn.topic),
    inturn._shell_word(text, boolean),
    inturn._require_owner(text, regprocedure, text, text, text),
    inturn._role_id(oid),
    inturn._server_id(),
    inturn._leave_out(inturn.topic, text[]),
    inturn._warn_superuser(),
    inturn._batch_query(regprocedure, text, boolean),
    inturn._read_batch(text, text, bigint, bigint, boolean, integer, integer),
    inturn._done_seq(text, inturn.command[], bigint, bigint),
    inturn._reached(text[], bigint[], text[], bigint[]),
    inturn._batch_commands(text, text[], timestamptz, timestamptz, integer),
    inturn._failure_text(text, text, text, text, text, boolean, text),
    inturn._outage_of(text, text, text, bigint, bigint, bigint, text, interval),
    inturn._judge_outages(text, jsonb, boolean, text, jsonb),
    -- Who applies, and where a pass begins.
    inturn.announce_applier(text, text[], text, integer, text, boolean, jsonb, integer),
    inturn._announce_applier(text, text[], text, integer, text, boolean, jsonb, integer, timestamptz),
    inturn.announce_sleep(text[]),
    inturn.next_ready(text[], timestamptz),
    inturn.pending_commands(text[]),
    inturn.topic_metrics(),
    inturn.server_metrics(),
    inturn.key_state(inturn.key_cursor),
    inturn._begin_saved_pass(text[], inturn._pass, boolean),
    inturn._spread_out(text, timestamptz, integer),
    inturn._list_topics(text[]),
    inturn._arrival_topics(text[]),
    inturn._has_others(text, text),
    inturn._next_suspect(text[], timestamptz, timestamptz),
    inturn._count_held(text[]),
    inturn._prune_idle()
TO inturn_applier;

-- An operator reads all but the keys of topics that are granted to others, and creates topics and puts right by
-- functions that run as their owner and record who did it.
GRANT SELECT ON ALL TABLES IN SCHEMA inturn TO inturn_operator;
GRANT EXECUTE ON FUNCTION
    inturn.create_topic(text, text, integer, interval, interval, integer, integer, text,
                        text, bigint, bigint, interval, interval, integer, interval, bigint,
                        interval, interval, interval, boolean),
    inturn._target_kinds(),
    inturn._kind_of(text),
    inturn._look_at_targets(),
    inturn._hidden_topics(),
    inturn._topics_to_prune(interval),
    inturn.list_keys(text, text, integer, text, interval, bigint, text, text),
    inturn.list_errors(text, text, text, integer),
    inturn.topic_status(text, interval),
    inturn.topic_metrics(),
    inturn.server_metrics(),
    inturn.pending_commands(text[]),
    inturn.key_state(inturn.key_cursor),
    inturn.timeline(text, text, integer),
    inturn.verify_topics(),
    inturn.verify_slice(text, text, integer),
    inturn.verify(text, text, text),
    inturn.list_appliers(),
    inturn._fits(text),
    inturn._process_of(text),
    inturn.why(text, text),
    inturn.retry(text, text, text),
    inturn.retry_all(text, text, text, interval, text, text),
    inturn.skip(text, text, bigint, text),
    inturn.cancel_rest(text, text, text),
    inturn.cancel_rest_all(text, text, text, text, interval, text),
    inturn.replay(text, text, bigint, text),
    inturn.amend(text, text, bigint, text, text, jsonb, jsonb),
    inturn.pause(text, text, text, timestamptz),
    inturn.resume(text, text, text),
    inturn.fill_gap(text, text, bigint, text),
    inturn.merge_rule(text, text, text, text, text),
    inturn.remove_merge_rule(text, text, text, text),
    inturn.merge_preview(text, text, text, text),
    inturn.pause_topic(text, text, timestamptz),
    inturn.resume_topic(text, text),
    inturn.set_topic(text, text, text, integer, interval, interval, integer, integer, text, bigint, interval, interval,
                     integer, interval, bigint,
                     interval, interval, interval, boolean)
TO inturn_operator;
-- The procedure commits, so it cannot run as its owner; what it calls does.
GRANT EXECUTE ON ROUTINE
    inturn.prune_batch(text, text, interval, integer),
    inturn.prune(text, interval, double precision, bigint, bigint, bigint, boolean)
TO inturn_operator;

-- Who deploys says what code appliers run, and sees what was said. Whoever lacks this role may name none: see
-- _require_admin.
GRANT SELECT ON inturn.topic, inturn.topic_grant, inturn.merge_rule TO inturn_admin;
GRANT EXECUTE ON FUNCTION
    inturn.create_topic(text, text, integer, interval, interval, integer, integer, text,
                        text, bigint, bigint, interval, interval, integer, interval, bigint,
                        interval, interval, interval, boolean),
    inturn._target_kinds(),
    inturn._kind_of(text),
    inturn.set_topic(text, text, text, integer, interval, interval, integer, integer, text, bigint, interval, interval,
                     integer, interval, bigint,
                     interval, interval, interval, boolean),
    inturn.pause_topic(text, text, timestamptz),
    inturn.resume_topic(text, text),
    inturn.merge_rule(text, text, text, text, text),
    inturn.remove_merge_rule(text, text, text, text),
    inturn.merge_preview(text, text, text, text)
TO inturn_admin;

-- Whoever reads a table that names keys sees those of topics that are open or granted to it as operator. Who owns the
-- tables sees all, and so does every function that runs as the owner: those that operators read by ask for themselves.
-- An array that is looked up once a statement, and not compared by an index: no plan changes for it.
ALTER TABLE inturn.command_log ENABLE ROW LEVEL SECURITY;
ALTER TABLE inturn.intake ENABLE ROW LEVEL SECURITY;
ALTER TABLE inturn.key_sequence ENABLE ROW LEVEL SECURITY;
ALTER TABLE inturn.key_mark ENABLE ROW LEVEL SECURITY;
ALTER TABLE inturn.merge_plan ENABLE ROW LEVEL SECURITY;
ALTER TABLE inturn.operator_action ENABLE ROW LEVEL SECURITY;
ALTER TABLE inturn.prune_pass ENABLE ROW LEVEL SECURITY;
ALTER TABLE inturn.skip ENABLE ROW LEVEL SECURITY;
ALTER TABLE inturn.ticket ENABLE ROW LEVEL SECURITY;
ALTER TABLE inturn.turn ENABLE ROW LEVEL SECURITY;
ALTER TABLE inturn.waiter ENABLE ROW LEVEL SECURITY;
ALTER TABLE inturn.wake_hint ENABLE ROW LEVEL SECURITY;
-- What it says of a target that does not answer has a key and an error in it.
ALTER TABLE inturn.applier ENABLE ROW LEVEL SECURITY;
CREATE POLICY granted ON inturn.command_log USING (topic <> ALL ((SELECT inturn._hidden_topics())::text[]));
CREATE POLICY granted ON inturn.intake USING (topic <> ALL ((SELECT inturn._hidden_topics())::text[]));
CREATE POLICY granted ON inturn.key_sequence USING (topic <> ALL ((SELECT inturn._hidden_topics())::text[]));
CREATE POLICY granted ON inturn.key_mark USING (topic <> ALL ((SELECT inturn._hidden_topics())::text[]));
CREATE POLICY granted ON inturn.merge_plan USING (topic <> ALL ((SELECT inturn._hidden_topics())::text[]));
CREATE POLICY granted ON inturn.operator_action USING (topic <> ALL ((SELECT inturn._hidden_topics())::text[]));
CREATE POLICY granted ON inturn.prune_pass USING (topic <> ALL ((SELECT inturn._hidden_topics())::text[]));
CREATE POLICY granted ON inturn.skip USING (topic <> ALL ((SELECT inturn._hidden_topics())::text[]));
CREATE POLICY granted ON inturn.ticket USING (topic <> ALL ((SELECT inturn._hidden_topics())::text[]));
CREATE POLICY granted ON inturn.turn USING (topic <> ALL ((SELECT inturn._hidden_topics())::text[]));
CREATE POLICY granted ON inturn.waiter USING (topic <> ALL ((SELECT inturn._hidden_topics())::text[]));
CREATE POLICY granted ON inturn.wake_hint USING (topic <> ALL ((SELECT inturn._hidden_topics())::text[]));
CREATE POLICY granted ON inturn.applier USING (NOT down ?| (SELECT inturn._hidden_topics()));
-- A partition, where whoever installs has made some, has none of its own: it is read by its table alone.
DO $$
DECLARE
    partition regclass;
BEGIN
    FOR partition IN
        SELECT c.oid FROM pg_class c JOIN pg_class t ON t.relnamespace = c.relnamespace
        WHERE t.oid = 'inturn.topic'::regclass AND c.relispartition AND c.relkind IN ('r', 'p')
    LOOP
        EXECUTE format('REVOKE ALL ON %s FROM PUBLIC, inturn_operator', partition);
    END LOOP;
END
$$;
-- A view reads as its owner, unless it is told otherwise. PostgreSQL 14 cannot be told: there they have the condition
-- themselves.
DO $$
BEGIN
    IF current_setting('server_version_num')::integer >= 150000 THEN
        ALTER VIEW inturn.key_cursor SET (security_invoker = true);
        ALTER VIEW inturn.merge SET (security_invoker = true);
        ALTER VIEW inturn.arrived_key SET (security_invoker = true);
    ELSE
        EXECUTE 'CREATE OR REPLACE VIEW inturn.key_cursor AS '
            || rtrim(pg_get_viewdef('inturn.key_cursor'::regclass), ';')
                || ' WHERE s.topic <> ALL ((SELECT inturn._hidden_topics())::text[])';
        EXECUTE 'CREATE OR REPLACE VIEW inturn.merge AS ' || rtrim(pg_get_viewdef('inturn.merge'::regclass), ';')
                || ' WHERE p.topic <> ALL ((SELECT inturn._hidden_topics())::text[])';
        EXECUTE 'CREATE OR REPLACE VIEW inturn.arrived_key AS '
            || rtrim(pg_get_viewdef('inturn.arrived_key'::regclass), ';')
                || ' HAVING i.topic <> ALL ((SELECT inturn._hidden_topics())::text[])';
    END IF;
END
$$;
