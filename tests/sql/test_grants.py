"""Who may do what: read from the catalog, and attempted by logins."""

from __future__ import annotations

import pytest
from psycopg import sql
from support.database import Database
from support.logins import connect_as, let_apply
from support.place import OPERATOR_ACTIONS
from support.refusal import refusal

from inturn.schema.install import upgrade

ROLES = ("inturn_caller", "inturn_applier", "inturn_operator", "inturn_admin")
APPEND = "SELECT inturn.append('orders', 'a', 'insert')"

#: To wait for what was appended.
WAITS = {"wait", "wait_state", "announce_wait"}
#: What each role may call: its protocol, beside the internal parts of it.
ROUTINES = {
    "inturn_caller": {"append", "append_many", "progress", *WAITS},
    "inturn_applier": {
        *("claim", "claim_commands", "finish", "fail", "apply", "apply_batch"),
        *("advance", "renew", "release"),
        *("announce_applier", "announce_sleep", "next_ready", "pending_commands"),
        *("key_state", "topic_metrics", "server_metrics"),
    },
    "inturn_operator": {
        *("create_topic", "set_topic", "pause_topic", "resume_topic"),
        *("merge_rule", "remove_merge_rule", "merge_preview"),
        *("list_keys", "list_errors", "topic_status", "pending_commands", "key_state"),
        *("topic_metrics", "server_metrics"),
        *("prune", "prune_batch"),
        *("list_appliers", "why", "timeline", "verify", "verify_slice", "verify_topics"),
        *OPERATOR_ACTIONS,
        *WAITS,
    },
    # Who deploys names code; and pauses topics meanwhile.
    "inturn_admin": {
        *("create_topic", "set_topic", "pause_topic", "resume_topic"),
        *("merge_rule", "remove_merge_rule", "merge_preview"),
    },
}

#: relation: what each role may do with it, as caller, applier, operator; admins: see ADMIN_READS.
RELATIONS = {
    "topic": ("", "", "SELECT"),
    "topic_grant": ("", "", "SELECT"),
    "command_log": ("", "", "SELECT"),
    "merge_rule": ("", "", "SELECT"),
    "merge_plan": ("", "", "SELECT"),
    "merge": ("", "", "SELECT"),
    "key_sequence": ("", "", "SELECT"),
    "key_cursor": ("", "", "SELECT"),
    "arrived_key": ("", "", "SELECT"),
    "ticket": ("", "", "SELECT"),
    "key_mark": ("", "", "SELECT"),
    "wake_hint": ("", "", "SELECT"),
    "intake": ("", "", "SELECT"),
    "intake_id_seq": ("", "", ""),
    "arrival_pass": ("", "", "SELECT"),
    "saved_pass": ("", "", "SELECT"),
    "turn": ("", "", "SELECT"),
    "listener": ("", "", "SELECT"),
    "applier": ("", "", "SELECT"),
    "waiter": ("", "", "SELECT"),
    "waiter_id_seq": ("", "", ""),
    "forgotten": ("", "", "SELECT"),
    "prune_pass": ("", "", "SELECT"),
    "skip": ("", "", "SELECT"),
    "operator_action": ("", "", "SELECT"),
    "outbox": ("INSERT SELECT", "", "SELECT"),
    "schema_version": ("SELECT", "SELECT", "SELECT"),
    "compatible_since": ("SELECT", "SELECT", "SELECT"),
}

ADMIN_READS = {"topic", "topic_grant", "merge_rule", "schema_version", "compatible_since"}


@pytest.fixture
def orders(witness: Database) -> Database:
    """The witness database, whose target the applier may run, with one command."""
    let_apply(witness)
    return witness


# The catalog.


@pytest.mark.parametrize("role", ROLES)
def test_each_role_may_call_exactly_its_protocol(database: Database, role: str) -> None:
    rows = database.execute(
        """
        SELECT proname, starts_with(obj_description(oid, 'pg_proc'), 'Internal') FROM pg_proc
        WHERE pronamespace = 'inturn'::regnamespace AND has_function_privilege(%s, oid, 'EXECUTE')
        """,
        [role],
    )
    assert {name for name, internal in rows if not internal} == ROUTINES[role]
    if role == "inturn_caller":
        # What the view schema_version, which it may read, calls.
        assert [name for name, internal in rows if internal] == ["_revision"]


def test_the_insides_of_append_are_granted_to_nobody(database: Database) -> None:
    insides = """
        SELECT proname FROM pg_proc WHERE pronamespace = 'inturn'::regnamespace
            AND obj_description(oid, 'pg_proc') ~ '^(Internal to append|Trigger)'
    """
    assert database.execute(insides)
    for role in ROLES:
        granted = insides + " AND has_function_privilege(%s, oid, 'EXECUTE')"
        assert database.execute(granted, [role]) == []


@pytest.mark.parametrize("role", ROLES)
def test_each_role_has_exactly_its_privileges_on_relations(database: Database, role: str) -> None:
    rows = database.execute(
        """
        SELECT relname, (
            SELECT coalesce(string_agg(privilege, ' ' ORDER BY privilege), '')
            FROM unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[])
                AS p (privilege)
            WHERE has_table_privilege(%s, c.oid, privilege))
        FROM pg_class c
        WHERE relnamespace = 'inturn'::regnamespace AND relkind IN ('r', 'v', 'p', 'm', 'S', 'f')
        """,
        [role],
    )
    place = ROLES.index(role)
    if role == "inturn_admin":
        assert {name for name, given in rows if given == "SELECT"} == ADMIN_READS
        assert {given for _, given in rows} == {"", "SELECT"}
        return
    assert dict(rows) == {name: given[place] for name, given in RELATIONS.items()}


def test_no_privilege_is_on_a_single_column(database: Database) -> None:
    query = """
        SELECT attrelid::regclass, attname FROM pg_attribute
        JOIN pg_class c ON c.oid = attrelid
        WHERE relnamespace = 'inturn'::regnamespace AND attacl IS NOT NULL
    """
    assert database.execute(query) == []


def test_public_has_nothing(database: Database) -> None:
    granted = database.execute("""
        SELECT what, privilege_type FROM (
            SELECT oid::regprocedure::text, coalesce(proacl, acldefault('f', proowner))
            FROM pg_proc WHERE pronamespace = 'inturn'::regnamespace
            UNION ALL
            SELECT oid::regclass::text, coalesce(relacl, acldefault('r', relowner))
            FROM pg_class WHERE relnamespace = 'inturn'::regnamespace AND relkind IN ('r', 'v')
            UNION ALL
            SELECT nspname, coalesce(nspacl, acldefault('n', nspowner))
            FROM pg_namespace WHERE nspname = 'inturn'
        ) AS everything (what, acl), aclexplode(acl) WHERE grantee = 0
    """)
    assert granted == []


def test_public_has_nothing_where_it_is_given_everything_by_default(
    empty_database: Database,
) -> None:
    empty_database.execute("""
        ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO PUBLIC;
        ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC;
        ALTER DEFAULT PRIVILEGES GRANT ALL ON ROUTINES TO PUBLIC;
    """)
    upgrade(empty_database.dsn)
    test_public_has_nothing(empty_database)


def test_no_role_may_create_in_the_schema_or_grant_on(database: Database) -> None:
    for role in ROLES:
        assert not database.value("SELECT has_schema_privilege(%s, 'inturn', 'CREATE')", [role])
    grantable = """
        SELECT relname FROM pg_class c, aclexplode(relacl) WHERE relnamespace =
            'inturn'::regnamespace AND is_grantable AND grantee <> relowner
        UNION ALL
        SELECT proname FROM pg_proc p, aclexplode(proacl) WHERE pronamespace =
            'inturn'::regnamespace AND is_grantable AND grantee <> proowner
    """
    assert database.execute(grantable) == []


def test_the_roles_are_siblings_that_cannot_log_in(database: Database) -> None:
    for role in ROLES:
        others = [other for other in ROLES if other != role]
        for other in others:
            assert not database.value("SELECT pg_has_role(%s, %s, 'MEMBER')", [role, other])
        assert database.execute(
            "SELECT rolsuper, rolcanlogin, rolcreaterole, rolcreatedb, rolbypassrls, rolreplication"
            " FROM pg_roles WHERE rolname = %s",
            [role],
        ) == [(False,) * 6]


#: What an applier may call beside its protocol: steps of it, each fenced by the claim or the epoch.
APPLIER_STEPS = {
    *(
        "_finish",
        "_count_skipped",
        "_lock_ticket",
        "_keep_alone",
        "_took_long",
        "_hold_lease",
        "_hold_alone",
        "_record_progress",
    ),
    *(
        "_claim_alone",
        "_end_turn_alone",
        "_lose_alone",
        "_blame_alone",
        "_batch_commands",
        "_turn_commands",
    ),
    *("_begin_saved_pass", "_spread_out", "_announce_applier"),
    *("_careful_keys", "_note_careful", "_list_sessions", "_end_applier"),
    *("_sql_topic", "_sql_topics", "_leave_at", "_list_topics", "_arrival_topics"),
    *("_has_others", "_count_held", "_next_suspect"),
    *("_read_batch", "_check_lease", "_lease_claimed", "_settings_of", "_prune_idle"),
    *("_commands_to_merge", "_merge_rules", "_save_merges", "_planned_end"),
    "_merge_functions",
}
#: What it may call and runs as itself: what calls a target, and what only computes.
APPLIER_OWN = {
    *("_visit_topic", "_visit_alone", "_apply_key", "_apply_alone", "_check_effects", "_end_alone"),
    "_close_cursors",
    *("_require_read_committed", "_read_verdict", "_failure_text", "_revision", "_begin_until"),
    *("_outage_of", "_judge_outages", "_fail_outages", "_seconds_per_key"),
    *("_keep_settings", "_reset_session"),
    *("_claim_leases", "_claim_small", "_first_merged", "_take_alone", "_max_claim_octets"),
    *("_plan_batch", "_plan_alone", "_plan_merges", "_fold_merges", "_call_merge", "_merge_function"),
    *(
        "_trusted_target",
        "_require_target",
        *("_target_refusal", "_shell_word"),
        "_require_owner",
        "_require_merges",
        *("_role_id", "_server_id"),
        "_trusted_merge",
        "_leave_out",
        "_warn_superuser",
    ),
    *("_target_function", "_function_name", "_target_query", "_batch_query", "_done_seq", "_reached"),
}
#: What runs as its owner: an append, an applier's steps, and what an operator does only by being recorded.
DEFINERS = {
    "append",
    "_take_replicated",
    # A caller sees where keys stand, and nothing else of them.
    *WAITS,
    *("claim", "fail", "advance", "renew", "release"),
    *("announce_sleep", "next_ready", "pending_commands"),
    *APPLIER_STEPS,
    # An applier numbers what has arrived, and may not write to the log.
    "_number_arrivals",
    *("_prune_idle", "prune_batch", "_topics_to_prune"),
    # These show an operator the sessions of others.
    *("list_appliers", "why", "topic_metrics", "server_metrics"),
    # It looks into the log, which an applier may not read.
    "key_state",
    # These leave out keys of topics that are granted to other operators.
    *("_hidden_topics", "list_keys", "list_errors", "topic_status", "timeline"),
    *("verify", "verify_slice", "verify_topics"),
    *("create_topic", "set_topic", "pause_topic", "resume_topic"),
    *("merge_rule", "remove_merge_rule", "merge_preview"),
    # An applier plans merges: it reads what operators amended, and writes no table by itself.
    *("_commands_to_merge", "_save_merges"),
    # Who may act on a topic nobody writes, and a caller sees no more of a key than how far it is.
    *(
        "grant_topic",
        "revoke_topic",
        "_is_granted",
        "_require_grant",
        "_require_admin",
        "_require_sight",
        "progress",
    ),
    # Whether targets are there, whosever schemas they are in.
    "_look_at_targets",
    *OPERATOR_ACTIONS,
}


def test_an_applier_may_call_no_other_step(database: Database) -> None:
    rows = database.execute("""
        SELECT proname FROM pg_proc WHERE pronamespace = 'inturn'::regnamespace AND proname LIKE '\\_%'
        AND has_function_privilege('inturn_applier', oid, 'EXECUTE')
    """)
    assert {name for (name,) in rows} == APPLIER_STEPS | APPLIER_OWN


def test_what_runs_as_its_owner_pins_its_search_path(database: Database) -> None:
    definers = database.execute("""
        SELECT proname, (SELECT setting FROM unnest(proconfig) AS c (setting)
                         WHERE setting LIKE 'search_path=%')
        FROM pg_proc WHERE pronamespace = 'inturn'::regnamespace AND prosecdef ORDER BY 1
    """)
    assert dict(definers) == dict.fromkeys(DEFINERS, "search_path=pg_catalog, pg_temp")


def test_no_function_builds_sql_from_a_callers_value(database: Database) -> None:
    dynamic = database.execute("""
        SELECT proname FROM pg_proc WHERE pronamespace = 'inturn'::regnamespace
        AND prosrc ~* '\\mEXECUTE\\M' ORDER BY 1
    """)
    # The applier's own, which call a target that an operator named.
    assert dynamic == [
        *[("_apply_alone",), ("_apply_key",), ("_call_merge",), ("_close_cursors",), ("_reset_session",)],
        *[("apply_batch",), ("list_keys",)],
    ]


# Attempts.


def test_a_caller_appends_by_every_door(orders: Database) -> None:
    with connect_as(orders, "inturn_caller") as caller:
        assert caller.execute(APPEND).fetchone() == (2,)
        many = caller.execute("SELECT inturn.append_many('orders', '{a,b}', '{update,insert}')")
        assert many.fetchone() == ([3, 1],)
        inserted = caller.execute(
            "INSERT INTO inturn.outbox (topic, key, name) VALUES ('orders', 'b', 'update') RETURNING seq"
        )
        assert inserted.fetchone() == (2,)
        with caller.cursor().copy("COPY inturn.outbox (topic, key, name) FROM STDIN") as copy:
            copy.write_row(("orders", "b", "delete"))
        assert caller.execute("SELECT * FROM inturn.outbox").fetchall() == []
    rows = orders.execute("SELECT key, seq FROM inturn.command_log ORDER BY 1, 2")
    assert rows == [("a", 1), ("a", 2), ("a", 3), ("b", 1), ("b", 2), ("b", 3)]


NOT_A_CALLERS = [
    "SELECT FROM inturn.command_log",
    "SELECT FROM inturn.key_sequence FOR UPDATE",
    "SELECT FROM inturn.key_cursor",
    "SELECT FROM inturn.ticket FOR UPDATE",
    "SELECT FROM inturn.key_mark",
    "SELECT FROM inturn.wake_hint",
    "SELECT FROM inturn.topic",
    "SELECT FROM inturn.turn",
    "SELECT FROM inturn.listener",
    "INSERT INTO inturn.command_log (topic, key, seq, name, payload) VALUES ('orders', 'a', 9, 'x', '{}')",
    "INSERT INTO inturn.key_sequence (topic, key) VALUES ('orders', 'z')",
    "INSERT INTO inturn.ticket VALUES ('orders', 'z', 0, 0, now())",
    "INSERT INTO inturn.wake_hint (topic, key, left_at) VALUES ('orders', 'z', now())",
    "INSERT INTO inturn.topic (name, target) VALUES ('mine', 'python')",
    "UPDATE inturn.command_log SET name = 'x'",
    "UPDATE inturn.key_cursor SET applied_seq = 9",
    "UPDATE inturn.key_sequence SET given = true",
    "UPDATE inturn.ticket SET applied_seq = 9",
    "UPDATE inturn.turn SET drained = true",
    "DELETE FROM inturn.command_log",
    "DELETE FROM inturn.ticket",
    "TRUNCATE inturn.command_log",
    "BEGIN; LOCK TABLE inturn.key_sequence IN SHARE MODE",
    "ALTER TABLE inturn.command_log ADD COLUMN mine integer",
    "DROP VIEW inturn.outbox",
    "CREATE TABLE inturn.mine ()",
    "CREATE FUNCTION inturn.mine() RETURNS void LANGUAGE sql AS ''",
    "CREATE TRIGGER mine INSTEAD OF INSERT ON inturn.outbox"  # noqa: ISC004
    " FOR EACH ROW EXECUTE FUNCTION inturn._append_from_outbox()",
    "SELECT inturn.claim('orders')",
    "SELECT inturn.claim_commands('orders')",
    "SELECT inturn.finish('orders', '{a}', '{1}', '{1}', '{1}', 'me')",
    "SELECT inturn.fail('orders', 'a', 1, 1, 1, 'e', 'me')",
    "SELECT inturn.claim('{orders}'::text[], 1, NULL, NULL)",
    "SELECT inturn.advance('orders', 'a', 1, 1)",
    "CALL inturn.apply()",
    "SELECT inturn.announce_sleep('{orders}')",
    "SELECT inturn.create_topic('mine')",
    "SELECT inturn.list_keys()",
    "SET ROLE inturn_applier",
    "SET ROLE inturn_operator",
]


def test_a_caller_can_do_nothing_else(orders: Database) -> None:
    session = connect_as(orders, "inturn_caller")
    for attempt in NOT_A_CALLERS:
        assert refusal(session, attempt).sqlstate == "42501", attempt
        session.rollback()


NOT_AN_APPLIERS = [
    APPEND,
    "SELECT inturn.append_many('orders', '{a}', '{insert}')",
    "INSERT INTO inturn.outbox (topic, key, name) VALUES ('orders', 'a', 'insert')",
    "COPY inturn.outbox (topic, key, name) FROM STDIN",
    "INSERT INTO inturn.command_log (topic, key, seq, name, payload) VALUES ('orders', 'a', 2, 'x', '{}')",
    "UPDATE inturn.command_log SET name = 'x'",
    "DELETE FROM inturn.command_log",
    "UPDATE inturn.topic SET target = 'python'",
    "DELETE FROM inturn.turn",
    "DELETE FROM inturn.key_sequence",
    "INSERT INTO inturn.key_sequence (topic, key) VALUES ('orders', 'z')",
    "INSERT INTO inturn.wake_hint (topic, key, left_at) VALUES ('orders', 'z', now())",
    "DELETE FROM inturn.skip",
    "TRUNCATE inturn.ticket",
    *(
        f"SELECT FROM inturn.{table}"
        for table in ("topic", "command_log", "intake", "turn", "ticket", "key_mark")
    ),
    "UPDATE inturn.turn SET applied_seq = 9",
    "UPDATE inturn.ticket SET applied_seq = 9",
    "DELETE FROM inturn.key_mark",
    "INSERT INTO inturn.skip (topic, key, seq, epoch, skipped_by) VALUES ('orders', 'a', 1, 1, 'handler')",
    "BEGIN; LOCK TABLE inturn.ticket IN ACCESS EXCLUSIVE MODE",
    "SELECT inturn._pass_over('orders', 'a', 1, 1, 1, 'handler', 'x')",
    "SELECT inturn._next_commands('orders', 'a', 0, 1)",
    "SELECT inturn._save_key(c, c) FROM (SELECT NULL::inturn.key_cursor) t (c)",
    "SELECT inturn.create_topic('mine')",
    "SELECT inturn.list_keys()",
    "CREATE TABLE inturn.mine ()",
    "SET ROLE inturn_caller",
    "SET ROLE inturn_operator",
]


def test_an_applier_neither_appends_nor_rewrites_what_was_appended(
    orders: Database,
) -> None:
    session = connect_as(orders, "inturn_applier")
    for attempt in NOT_AN_APPLIERS:
        assert refusal(session, attempt).sqlstate == "42501", attempt
        session.rollback()


NOT_AN_OPERATORS = [
    APPEND,
    "INSERT INTO inturn.outbox (topic, key, name) VALUES ('orders', 'a', 'insert')",
    "CALL inturn.apply()",
    "SELECT inturn.claim('orders')",
    "SELECT inturn.finish('orders', '{a}', '{1}', '{1}', '{1}', 'me')",
    "UPDATE inturn.key_cursor SET applied_seq = 9",
    "UPDATE inturn.ticket SET applied_seq = 9",
    "DELETE FROM inturn.key_mark",
    "UPDATE inturn.key_sequence SET given = true",
    "DELETE FROM inturn.command_log",
    "UPDATE inturn.topic SET target = 'python'",
    "DELETE FROM inturn.topic",
    "CREATE TABLE inturn.mine ()",
    "SET ROLE inturn_caller",
    "SET ROLE inturn_applier",
]


def test_an_operator_neither_appends_nor_applies(orders: Database) -> None:
    session = connect_as(orders, "inturn_operator")
    for attempt in NOT_AN_OPERATORS:
        assert refusal(session, attempt).sqlstate == "42501", attempt
        session.rollback()


@pytest.mark.parametrize("role", ROLES)
def test_calling_another_roles_protocol_is_refused_before_it_starts(orders: Database, role: str) -> None:
    session = connect_as(orders, role)
    routines = orders.execute("""
        SELECT proname::text, prokind = 'p', ARRAY(
            SELECT format_type(type, NULL) FROM unnest(proargtypes) AS t (type)),
            obj_description(oid, 'pg_proc')
        FROM pg_proc WHERE pronamespace = 'inturn'::regnamespace
    """)
    others = set().union(*ROUTINES.values()) - ROUTINES[role]
    refused = set()
    for name, is_procedure, types, comment in routines:
        if name in others or comment.startswith("Internal to append"):
            arguments = ", ".join(f"NULL::{type_}" for type_ in types)
            call = f"{'CALL' if is_procedure else 'SELECT'} inturn.{name}({arguments})"
            assert refusal(session, call).sqlstate == "42501", call
            refused.add(name)
    assert refused >= others


def test_an_operator_reads_everything_and_creates_topics(orders: Database) -> None:
    with connect_as(orders, "inturn_operator") as operator:
        created = operator.execute("SELECT inturn.create_topic('mine', max_attempts => 3)")
        assert created.fetchone() == (True,)
        for relation in RELATIONS.keys() - {"operator_action_id_seq", "intake_id_seq", "waiter_id_seq"}:
            operator.execute(sql.SQL("SELECT * FROM inturn.{}").format(sql.Identifier(relation)))
        listed = operator.execute("SELECT key, state FROM inturn.list_keys()")
        assert listed.fetchall() == [("a", "ready")]
        pending = operator.execute("SELECT inturn.pending_commands('{orders}')")
        assert pending.fetchone() == (1,)


def test_a_login_without_a_role_does_not_even_see_the_functions(orders: Database) -> None:
    nobody = connect_as(orders)
    for attempt in (APPEND, "SELECT FROM inturn.outbox", "CALL inturn.apply()"):
        assert refusal(nobody, attempt).sqlstate == "42501"
