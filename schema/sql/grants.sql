-- Every privilege, in one place. Nothing here is granted to PUBLIC.
REVOKE ALL ON SCHEMA inturn FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA inturn FROM PUBLIC;
REVOKE ALL ON ALL ROUTINES IN SCHEMA inturn FROM PUBLIC;

GRANT USAGE ON SCHEMA inturn TO inturn_caller, inturn_applier, inturn_operator;
GRANT SELECT ON inturn.schema_version TO inturn_caller, inturn_applier, inturn_operator;

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

-- An applier moves cursors with its own privileges: its targets run with them too.
GRANT EXECUTE ON ROUTINE
    inturn.claim(text, timestamptz, integer),
    inturn._merge_function(text),
    inturn._call_merge(text, inturn.command, inturn.command, integer),
    inturn._commands_to_merge(text, text, bigint, bigint, integer),
    inturn._merge_rules(text),
    inturn._fold_merges(inturn.topic, text, bigint, bigint, integer, jsonb, boolean),
    inturn._save_merges(text, text, bigint, inturn.merge_plan[]),
    inturn._plan_merges(inturn.topic, text, bigint, bigint, integer),
    inturn._planned_commands(text, text, bigint, bigint, integer),
    inturn._past_nothing(text, text, bigint, bigint),
    inturn._next_planned(text, text, bigint, bigint),
    inturn._failed_seq(text, text, bigint, bigint, bigint),
    inturn._plan_batch(inturn.topic, text[], bigint[], bigint[], integer[], integer, text),
    inturn._plan_alone(inturn.topic, inturn.key_cursor, integer),
    inturn._take_alone(text, text, bigint, integer),
    inturn.claim_commands(text, timestamptz, integer),
    inturn._end_turns(text, text[], tid[], boolean[], bigint[], bigint[], bigint[], text),
    inturn._clear_marks(text, text[], bigint[], boolean[], bigint[], bigint[]),
    inturn._wait_for_gap(text, text),
    inturn._number_arrivals(text[]),
    inturn._take_hints(text[], timestamptz),
    inturn._look_at_key(text, text),
    inturn._wake_key(text, text, bigint, bigint),
    inturn.key_state(inturn.key_cursor),
    inturn._next_ready_at(inturn.key_cursor, timestamptz),
    inturn._empty_turn_wait(integer),
    inturn._save_key(inturn.key_cursor, inturn.key_cursor),
    inturn._put_to_sleep(inturn.key_cursor, inturn.key_cursor),
    inturn.finish(text, text[], bigint[], bigint[], bigint[], text),
    inturn.fail(text, text, bigint, bigint, bigint, text, text, text, interval),
    inturn._backoff(inturn.topic, integer),
    inturn._record_failure(inturn.key_cursor, bigint, bigint, bigint, integer, text, text, timestamptz, text, interval),
    inturn._pass_over(text, text, bigint, bigint, bigint, text, text),
    inturn._next_commands(text, text, bigint, integer),
    inturn._max_claim_octets(),
    inturn._find_gap(inturn.key_cursor),
    inturn._settle_key(inturn.key_cursor, inturn.key_cursor),
    inturn._notify_appliers(text),
    inturn._wait_channel(text, text),
    inturn._notify_waiters(text, text[]),
    inturn._wake_waiters(text, text),
    inturn._begin_saved_pass(text[], inturn._pass),
    inturn._lease_end(inturn.topic, interval),
    inturn._begin_lease(inturn.topic, text, bigint, bigint, interval, text),
    inturn._try_lease(inturn.topic, text, bigint, bigint, interval, text),
    inturn._claim_leases(text[], integer, interval, text, boolean),
    inturn._process_of(text),
    inturn._has_leases(text, boolean),
    inturn._lock_process(text),
    inturn._lose_lease(inturn.key_cursor, text),
    inturn._put_off(inturn.key_cursor, text),
    inturn._claim_alone(text, timestamptz, text),
    inturn._end_alone(text, text, bigint, bigint, text, text, interval),
    inturn._lose_alone(text, text, bigint, text, boolean),
    inturn._hold_lease(text, text, bigint),
    inturn.claim(text[], integer, interval, text),
    inturn.advance(text, text, bigint, bigint, interval),
    inturn.renew(text, text, bigint, interval),
    inturn.release(text, text, bigint),
    inturn.fail(text, text, bigint, bigint, text, jsonb),
    inturn._record_progress(text[], text[], bigint[], bigint[], boolean[]),
    inturn._require_read_committed(),
    inturn._refuse_topic(text),
    inturn._sql_topic(text),
    inturn._is_granted(text, text),
    inturn._require_grant(text, text),
    inturn._target_kinds(),
    inturn._target_function(text, text),
    inturn._target_query(text, text, boolean),
    inturn._batch_query(regprocedure, boolean),
    inturn._read_batch(text, text, bigint, integer, integer, bigint),
    inturn._done_seq(text, inturn.command[], bigint, bigint),
    inturn._read_verdict(text, text),
    inturn._apply_key(text, text, bigint, bigint, integer, integer, text, text),
    inturn._check_effects(),
    inturn._failure_text(text, text, text, text, text, boolean, text),
    inturn.apply_batch(text, timestamptz, integer, text, boolean),
    inturn._apply_alone(text, text, bigint),
    inturn._visit_alone(text, timestamptz, text, bigint, bigint, integer),
    inturn._begin_pass(text[], inturn._pass),
    inturn._spread_out(text, timestamptz, integer),
    inturn._visit_topic(text, timestamptz, timestamptz, integer, text, bigint, bigint, boolean, double precision, integer),
    inturn.apply(text[], double precision, integer, bigint, bigint),
    inturn.announce_applier(text, text[], text, integer, text, boolean, jsonb, integer),
    inturn.announce_sleep(text[]),
    inturn.next_ready(text[], timestamptz),
    inturn.pending_commands(text[]),
    inturn.topic_metrics(),
    inturn.server_metrics(),
    inturn._prune_idle()
TO inturn_applier;
GRANT SELECT ON inturn.topic, inturn.topic_grant, inturn.command_log, inturn.intake, inturn.merge_rule, inturn.merge_plan TO inturn_applier;
GRANT SELECT, UPDATE ON inturn.key_sequence TO inturn_applier;
GRANT SELECT, INSERT, UPDATE, DELETE ON inturn.ticket, inturn.key_mark TO inturn_applier;
GRANT SELECT, UPDATE, DELETE ON inturn.wake_hint TO inturn_applier;
GRANT SELECT, INSERT, UPDATE, DELETE ON inturn.saved_pass TO inturn_applier;
GRANT SELECT ON inturn.key_cursor TO inturn_applier;
GRANT SELECT, INSERT, UPDATE ON inturn.listener TO inturn_applier;
GRANT SELECT ON inturn.waiter TO inturn_applier;
GRANT SELECT, INSERT, UPDATE ON inturn.turn TO inturn_applier;
GRANT SELECT, INSERT ON inturn.skip TO inturn_applier;
GRANT SELECT, INSERT, UPDATE, DELETE ON inturn.applier TO inturn_applier;

-- An operator reads everything, and creates topics and puts right by functions that run as their owner and record who did it.
GRANT SELECT ON ALL TABLES IN SCHEMA inturn TO inturn_operator;
GRANT EXECUTE ON FUNCTION
    inturn.create_topic(text, text, integer, interval, interval, integer, integer, text,
                        text, bigint, bigint, interval, interval, integer, interval, bigint,
                        interval, interval, interval),
    inturn._address_problem(text),
    inturn._check_topic(inturn.topic),
    inturn._target_kinds(),
    inturn._target_function(text, text),
    inturn._keys_query(text, text, boolean),
    inturn._shorten(text, integer),
    inturn._first_line(text),
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
    inturn._last_arrival_pass(text),
    inturn._verify_rows(text, text, text[], bigint[], bigint, bigint),
    inturn.verify(text, text, text),
    inturn.list_appliers(),
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
    inturn.set_topic(text, text, text, integer, interval, interval, integer, integer, text, bigint, interval, interval, integer, interval, bigint,
                     interval, interval, interval)
TO inturn_operator;
-- The procedure commits, so it cannot run as its owner; what it calls does.
GRANT EXECUTE ON ROUTINE
    inturn.prune_batch(text, text, interval, integer),
    inturn.prune(text, interval, double precision, bigint, bigint, bigint, boolean)
TO inturn_operator;
