"""Topic by topic: an operator sees keys, payloads and errors of the topics that are its own or open."""

from __future__ import annotations

import re
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from support.database import Database
from support.logins import connect_as, login
from support.process import run_inturn
from support.race import replaced
from support.refusal import refusal
from support.roles import OWNER

from inturn.schema.source import grants_script

NOT_GRANTED = "IT014"
MARK = "Geheim"
#: Relations in which something of the topic `theirs` is planted: a key, a payload, an error, a reason.
PLANTED = {
    "applier", "arrived_key", "command_log", "intake", "key_cursor", "key_mark", "key_sequence", "merge",
    "merge_plan", "operator_action", "prune_pass", "skip", "ticket", "turn", "waiter", "wake_hint",
}  # fmt: skip
#: Those that name no key, and hold numbers, settings and names only.
PLAIN = {
    "arrival_pass", "compatible_since", "forgotten", "listener", "merge_rule", "outbox", "saved_pass",
    "schema_version", "topic", "topic_grant",
}  # fmt: skip


@pytest.fixture
def theirs(witness: Database) -> Database:
    """Topic `theirs`, of other operators, marked in every table; beside it `own` and `open`."""
    others = f"others_{witness.name}"
    witness.execute(f"CREATE ROLE {others}")
    witness.execute("""
        CREATE FUNCTION app.tell(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
        BEGIN
            IF command.name = 'fail' THEN
                RAISE EXCEPTION 'refused % %', command.key, command.payload;
            END IF;
        END $$""")
    for topic in ("theirs", "own", "open"):
        mark = MARK if topic == "theirs" else "plain"
        witness.execute("SELECT inturn.create_topic(%s, 'sql:app.tell', max_attempts => 1)", [topic])
        witness.execute("SELECT inturn.merge_rule(%s, 'a', 'b', 'last')", [topic])
        for key, name in (("k", "fail"), ("s", "fail"), ("m", "a"), ("m", "b"), ("done", "insert")):
            payload = f'{{"x": "{mark}"}}'
            witness.execute(
                "SELECT inturn.append(%s, %s, %s, %s, %s)",
                [topic, f"{mark}-{key}", name, payload, f"{mark} {key} {name}"],
            )
    witness.execute("CALL inturn.apply()")
    witness.execute("SELECT inturn.append('theirs', 'Geheim-k', 'update')")
    witness.execute("SELECT inturn.skip('theirs', 'Geheim-s', 1, 'Geheim')")
    witness.execute(
        "SELECT inturn.amend('theirs', 'Geheim-k', 2, 'Geheim', payload => '{\"x\": \"Geheim\"}')"
    )
    witness.execute("""
        SELECT inturn.announce_wait('theirs', 'Geheim-k');
        INSERT INTO inturn.wake_hint VALUES ('theirs', 'Geheim-k', 'infinity');
        INSERT INTO inturn.prune_pass VALUES ('theirs', 1, 'Geheim-k', now());
        INSERT INTO inturn.intake (topic, key, name, payload) VALUES ('theirs', 'Geheim-k', 'x', '{}');
        SELECT inturn.announce_applier('me', '{theirs,own,open}', 'host', 7, '0001', down =>
            '{"theirs": {"seconds": 1, "key": "Geheim-k", "error": "Geheim"}}');
    """)
    witness.execute("SELECT inturn.grant_topic('theirs', 'operator', %s)", [others])
    return witness


def _relations(database: Database) -> set[str]:
    rows = database.execute(
        "SELECT relname::text FROM pg_class"
        " WHERE relnamespace = 'inturn'::regnamespace AND relkind IN ('r', 'v')"
    )
    return {name for (name,) in rows}


def _marked(session: psycopg.Connection[Any], relations: set[str]) -> set[str]:
    """Return the relations in which the session finds what is marked."""
    return {
        name
        for name in relations
        if MARK in str(session.execute(f"SELECT t::text FROM inturn.{name} t").fetchall())
    }


def test_every_relation_is_on_one_of_the_lists(theirs: Database) -> None:
    assert _relations(theirs) == PLANTED | PLAIN


def test_no_relation_shows_an_operator_what_is_others(theirs: Database) -> None:
    operator = connect_as(theirs, "inturn_operator")
    assert _marked(theirs.connect(user=OWNER), PLANTED | PLAIN) == PLANTED  # whose owner sees it all
    assert _marked(operator, PLANTED | PLAIN) == set()
    for name in PLANTED - {"applier", "prune_pass", "waiter", "wake_hint", "intake", "arrived_key", "skip"}:
        own = f"SELECT count(*) FROM inturn.{name} WHERE topic IN ('own', 'open')"
        rows = operator.execute(own).fetchone()
        assert rows == theirs.execute(own)[0] != (0,), name
    # Copies, cursors and plain columns are no way around it.
    assert MARK.encode() not in b"".join(
        operator.cursor().copy("COPY inturn.command_log TO STDOUT").__enter__()
    )


#: What reads over all topics, and what is asked for one of them.
ALL = (
    "inturn.list_keys()",
    "inturn.list_keys(sort_by => 'lag')",
    "inturn.list_keys(sort_by => 'age')",
    "inturn.list_keys(sort_by => 'attempts')",
    "inturn.list_keys(of_state => 'idle')",
    "inturn.list_keys(min_lag => 33, sort_by => 'lag')",
    "inturn.list_errors()",
    "inturn.topic_status()",
    "inturn.topic_metrics()",
    "inturn.server_metrics()",
    "inturn.list_appliers()",
    "inturn.verify_topics()",
    "inturn.why(NULL, 'Geheim-k')",
    "inturn.why(NULL, 'geheim-k')",
    "inturn.why('own', 'Geheim-m')",
    "inturn.retry_all()",
    "inturn.cancel_rest_all('because')",
)
ONE = (
    "inturn.list_keys('theirs')",
    "inturn.list_errors('theirs')",
    "inturn.topic_status('theirs')",
    "inturn.timeline('theirs', 'Geheim-k')",
    "inturn.why('theirs', 'Geheim-k')",
    "inturn.verify('theirs')",
    "inturn.verify_slice('theirs')",
    "inturn.merge_preview('theirs')",
    "inturn.retry_all('theirs')",
    "inturn.cancel_rest_all('because', 'theirs')",
)


def test_what_reads_over_all_topics_leaves_theirs_out(theirs: Database) -> None:
    operator = connect_as(theirs, "inturn_operator")
    for function in ALL:
        with operator.transaction(force_rollback=True):
            found = str(operator.execute(f"SELECT t::text FROM {function} t").fetchall())
        # The key that was asked for comes back, and nothing that was not.
        asked = "(Geheim-[km])" if "why" in function else "$^"
        assert MARK not in re.sub(asked, "", found), function
        if "why" in function:
            assert "no_such_key" in found, function
            assert '""near"": []' in found, function


def test_what_is_asked_of_theirs_is_refused(theirs: Database) -> None:
    operator = connect_as(theirs, "inturn_operator")
    for function in ONE:
        said = refusal(operator, f"SELECT * FROM {function}")
        assert said.sqlstate == NOT_GRANTED, function
        assert said.message == f"topic 'theirs' is not granted to {operator.info.user} as operator"
        with operator.transaction(force_rollback=True):
            operator.execute(f"SELECT * FROM {function.replace('theirs', 'own')}")


def test_whoever_it_is_granted_to_and_whoever_deploys_sees_it(theirs: Database) -> None:
    granted = connect_as(theirs, "inturn_operator")
    theirs.execute("SELECT inturn.grant_topic('theirs', 'operator', %s)", [granted.info.user])
    deployer = connect_as(theirs, "inturn_operator", "inturn_admin")
    for session in (granted, deployer, theirs.connect(user=OWNER)):
        for function in ("inturn.why(NULL, 'Geheim-k')", "inturn.list_keys()", *ONE[:8]):
            session.execute(f"SELECT * FROM {function}")
        assert _marked(session, PLANTED) == PLANTED
    assert MARK in str(granted.execute("SELECT t::text FROM inturn.list_keys() t").fetchall())


def test_an_applier_at_work_on_theirs_is_listed_without_its_key(theirs: Database) -> None:
    operator, owner = connect_as(theirs, "inturn_operator"), theirs.connect(user=OWNER)
    theirs.execute("SELECT inturn.append('theirs', 'Geheim-new', 'insert')")
    worker = theirs.session()
    worker.execute(
        "SELECT inturn.announce_applier('worker', '{theirs}', 'host', 7, '0001')",
    )
    worker.commit()
    worker.execute("SELECT * FROM inturn.claim('theirs')")
    query = "SELECT doing, topic, key, seq FROM inturn.list_appliers() WHERE applier = 'worker'"
    assert owner.execute(query).fetchall() == [("applying", "theirs", "Geheim-new", 1)]
    assert operator.execute(query).fetchall() == [("applying", None, None, None)]
    worker.rollback()
    theirs.execute("SELECT * FROM inturn.claim('{theirs}'::text[], 1, NULL, 'leaser')")
    query = query.replace("worker", "leaser")
    assert owner.execute(query).fetchall()[0][1:3] == ("theirs", "Geheim-new")
    assert operator.execute(query).fetchall() == [("applying", None, None, None)]


def _operators_dsn(database: Database) -> str:
    return login(database, "inturn_operator")


LEFT_OUT = "inturn: 1 topic is not shown, granted to other operators only: theirs"


#: In this order, the last of which changes something.
COMMANDS = [
    ("status",),
    ("keys",),
    ("keys", "--errors"),
    ("keys", "--held", "--json"),
    ("status", "--json"),
    ("verify",),
    ("verify", "--key", "plain-k"),
    ("show", "plain-k"),
    ("why", "plain-k"),
    ("show", "Geheim-k"),
    ("retry", "Geheim-k"),
    ("retry", "--all", "--yes"),
]
NAMING_THEIRS = [
    ("status",),
    ("keys",),
    ("keys", "--errors"),
    ("verify",),
    ("verify", "--key", "Geheim-k"),
    ("show", "Geheim-k"),
    ("why", "Geheim-k"),
    ("retry", "Geheim-k"),
    ("retry", "--all", "--yes"),
    ("amend", "Geheim-k", "2", "--payload", "{}", "--reason", "because"),
]


def test_the_command_line_says_which_topics_it_leaves_out(theirs: Database) -> None:
    operator = _operators_dsn(theirs)
    for command in COMMANDS:
        _, out, err = run_inturn(operator, *command)
        assert LEFT_OUT in err.splitlines(), command
        shown = (out + err).replace("Geheim-k", "" if "Geheim-k" in command else "Geheim-k")
        assert MARK not in shown, command
        # Where one is named it says nothing.
        if not {"--all", "Geheim-k", "--yes"} & {*command}:
            _, _, err = run_inturn(operator, *command, "--topic", "own")
            assert "not shown, granted" not in err, command


def test_a_command_that_names_theirs_is_refused_in_a_line(theirs: Database) -> None:
    operator = _operators_dsn(theirs)
    user = conninfo_to_dict(operator)["user"]
    for command in NAMING_THEIRS:
        code, out, err = run_inturn(operator, *command, "--topic", "theirs")
        assert (code, out) == (1, ""), command
        assert f"topic 'theirs' is not granted to {user} as operator" in err, command
        assert "Traceback" not in err, command


def test_a_login_that_would_rather_be_refused_than_see_less_sees_what_others_do(theirs: Database) -> None:
    """As who dumps is told to be."""
    operator = _operators_dsn(theirs)
    theirs.execute(f"ALTER ROLE {conninfo_to_dict(operator)['user']} SET row_security = off")
    code, out, err = run_inturn(operator, "show", "plain-k")
    assert (code, "plain-k" in out, LEFT_OUT in err) == (0, True, True)


def test_whoever_sees_everything_is_told_of_nothing(theirs: Database) -> None:
    for command in ("status", "keys", "verify"):
        assert "not shown, granted" not in run_inturn(theirs.owner_dsn, command)[2]


def test_checks_stay_silent_about_what_is_left_out(theirs: Database) -> None:
    """What cron runs prints only what is wrong."""
    operator = _operators_dsn(theirs)
    _, _, err = run_inturn(operator, "keys", "--held", "--check")
    assert err == ""
    _, _, err = run_inturn(operator, "status", "--check")
    assert "not shown, granted" not in err


def test_numbers_are_of_all_topics(theirs: Database) -> None:
    for role in ("inturn_operator", "inturn_applier"):
        query = "SELECT DISTINCT labels ->> 'topic' FROM inturn.topic_metrics() WHERE metric = 'inturn_keys'"
        found = connect_as(theirs, role).execute(query).fetchall()
        assert {topic for (topic,) in found} == {"orders", "theirs", "own", "open"}


def test_every_table_that_names_a_key_has_a_policy(theirs: Database) -> None:
    rows = theirs.execute("""
        SELECT c.relname::text FROM pg_class c
        WHERE c.relnamespace = 'inturn'::regnamespace AND c.relkind = 'r'
        AND EXISTS (SELECT FROM pg_attribute a
                    WHERE a.attrelid = c.oid AND a.attname IN ('key', 'next_key', 'down'))
        AND NOT (c.relrowsecurity
                 AND EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid AND p.polcmd = '*'))
    """)
    assert rows == []


def test_without_its_policy_a_table_would_show_it(theirs: Database) -> None:
    operator = connect_as(theirs, "inturn_operator")
    for table in ("command_log", "key_mark", "operator_action", "applier"):
        assert _marked(operator, {table}) == set()
        theirs.execute(f"ALTER TABLE inturn.{table} DISABLE ROW LEVEL SECURITY")
        assert _marked(operator, {table}) == {table}


#: Of a function: what is taken out, and what then tells of theirs.
GUARDS = [
    ("list_keys", ("PERFORM inturn._require_grant[^;]*;", ""), "list_keys('theirs')"),
    ("timeline", ("SELECT inturn._require_grant[^;]*;", ""), "timeline('theirs', 'Geheim-k')"),
    ("why", ("PERFORM inturn._require_grant[^;]*;", ""), "why('theirs', 'Geheim-k')"),
    ("list_errors", (r"\sAND t.name <> ALL [^;]*?\[\]\)", ""), "list_errors()"),
    ("_keys_query", (r" AND t.name <> ALL [^$]*?\[\]\)", ""), "list_keys()"),
    ("why", (r"t.name <> ALL [^;]*?\[\]\) AND", ""), "why(NULL, 'Geheim-k')"),
    ("_similar_keys", (r"t.name <> ALL [^;]*?\[\]\) AND", ""), "why('own', 'Geheim-m')"),
    ("list_appliers", (" - hidden.topics", ""), "list_appliers()"),
]


def test_without_the_guard_it_would_show_it(theirs: Database) -> None:
    """Each of them is needed; what else keeps a row back is the same login's."""
    operator = connect_as(theirs, "inturn_operator")
    for function, edit, call in GUARDS:
        with replaced(theirs, function, edit):
            if call == "list_keys('theirs')":  # it would say that there is nothing
                assert operator.execute(f"SELECT FROM inturn.{call}").fetchall() == []
                continue
            found = str(operator.execute(f"SELECT t::text FROM inturn.{call} t").fetchall())
        assert ("theirs" if call == "why('own', 'Geheim-m')" else MARK) in found, (function, call)


def test_the_condition_changes_no_plan(theirs: Database) -> None:
    """It is looked up once a statement; an index is used as without it."""
    operator = connect_as(theirs, "inturn_operator")
    operator.execute("SET enable_seqscan = off")
    for condition, index in (("topic = 'own' AND key = 'x' AND seq > 3", "command_log_pkey"),):
        rows = operator.execute(f"EXPLAIN SELECT * FROM inturn.command_log WHERE {condition}").fetchall()
        plan = "\n".join(line for (line,) in rows)
        assert f"Index Scan using {index}" in plan
        assert "InitPlan 1" in plan
        assert re.search(
            r"Index Cond: \(\(topic = 'own'::text\) AND \(key = 'x'::text\) AND \(seq > 3\)\)", plan
        )


def test_on_postgresql_14_the_views_have_the_condition_themselves(theirs: Database) -> None:
    """What is done there, done here: a view of a server that knows no invoker reads as its owner."""
    found = re.search(r"ELSE\n(.*?)END IF;", grants_script(), re.DOTALL)
    assert found is not None
    operator = connect_as(theirs, "inturn_operator")
    theirs.execute("""
        ALTER VIEW inturn.key_cursor RESET (security_invoker);
        ALTER VIEW inturn.merge RESET (security_invoker);
        ALTER VIEW inturn.arrived_key RESET (security_invoker)""")
    views = {"key_cursor", "merge", "arrived_key"}
    assert _marked(operator, views) == views
    query = (
        "SELECT c, m, a FROM inturn.key_cursor c LEFT JOIN inturn.merge m USING (topic, key)"
        " LEFT JOIN inturn.arrived_key a USING (topic, key)"
    )
    before = theirs.execute(query)
    theirs.execute(f"DO $do$ BEGIN {found[1]} END $do$")
    assert _marked(operator, views) == set()
    assert operator.execute("SELECT count(*) > 0 FROM inturn.key_cursor").fetchone() == (True,)
    assert sorted(map(str, theirs.execute(query))) == sorted(map(str, before))
