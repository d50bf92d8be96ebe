"""Roles, functions, tables and topics against one file of expectations: what has no line in it fails."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import psycopg
import pytest
from support.database import Database
from support.logins import connect_as
from support.roles import OWNER

ROLES = ("caller", "applier", "operator", "admin")
PRIVILEGES = "{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}"
NOT_GRANTED, DENIED, FENCED = "IT014", "42501", "IT030"
ANSWERS = {"refused": NOT_GRANTED, "fenced": FENCED}


def _section(name: str) -> list[str]:
    """Return the lines of one section of the file."""
    text = (Path(__file__).parent / "matrix.txt").read_text("utf-8")
    (section,) = re.findall(rf"^\[{name}\]\n(.*?)(?=^\[|\Z)", text, re.MULTILINE | re.DOTALL)
    return [line for line in section.splitlines() if line and not line.startswith("#")]


def _relations() -> dict[str, dict[str, set[str]]]:
    found = {}
    for line in _section("relations"):
        name, *grants = line.split()
        pairs = [grant.split("=") for grant in grants if grant != "-"]
        found[name] = {role: set(privileges.split(",")) for role, privileges in pairs}
    return found


def _functions() -> dict[str, set[str]]:
    lines = [line.rpartition(": ") for line in _section("functions")]
    assert len({signature for signature, _, _ in lines}) == len(lines), "a signature is there twice"
    return {signature: set(roles.split()) - {"-"} for signature, _, roles in lines}


TOPICS = [tuple(part.strip() for part in line.split("|")) for line in _section("topics")]
STEPS = [tuple(part.strip() for part in line.split("|")) for line in _section("steps")]


@pytest.fixture
def nobody(database: Database) -> str:
    """The name of a login without any role: it has what PUBLIC has."""
    name = f"nobody_{database.name}"
    database.execute(f"CREATE ROLE {name} LOGIN")
    return name


def test_every_function_has_a_line_and_is_granted_as_that_says(database: Database, nobody: str) -> None:
    rows = database.execute(
        "SELECT replace(p.oid::regprocedure::text, 'inturn.' || proname, proname), ARRAY(SELECT role FROM"
        " unnest(%s::text[]) r (role) WHERE has_function_privilege('inturn_' || role, p.oid, 'EXECUTE')),"
        " has_function_privilege(%s, p.oid, 'EXECUTE')"
        " FROM pg_proc p WHERE pronamespace = 'inturn'::regnamespace",
        [list(ROLES), nobody],
    )
    assert {signature: set(roles) for signature, roles, _ in rows} == _functions()
    assert [signature for signature, _, public in rows if public] == []
    # What has no underscore is for somebody; only the schema's owner hands out topics.
    nobodys = {signature.partition("(")[0] for signature, roles, _ in rows if not roles}
    assert {name for name in nobodys if not name.startswith("_")} == {"grant_topic", "revoke_topic"}


def test_every_relation_has_a_line_and_is_granted_as_that_says(database: Database, nobody: str) -> None:
    rows = database.execute(
        """
        SELECT relname::text, role, ARRAY(
            SELECT p FROM unnest(%s::text[]) p WHERE has_table_privilege(r.name, c.oid, p))
        FROM pg_class c CROSS JOIN (SELECT role, 'inturn_' || role FROM unnest(%s::text[]) r (role)
                                    UNION ALL VALUES ('nobody', %s)) r (role, name)
        WHERE relnamespace = 'inturn'::regnamespace AND relkind IN ('r', 'v', 'p', 'm', 'S', 'f')
        """,
        [PRIVILEGES, list(ROLES), nobody],
    )
    actual: dict[str, dict[str, set[str]]] = {}
    for relation, role, privileges in rows:
        actual.setdefault(relation, {}).update({role: set(privileges)} if privileges else {})
    assert actual == _relations()


def test_what_is_granted_lies_in_the_schema_alone(database: Database) -> None:
    """No privilege of a role is on another schema's object, and none may be passed on."""
    roles = [f"inturn_{role}" for role in ROLES]
    granted = database.execute(
        """
        SELECT what FROM (
            SELECT oid::regprocedure::text, pronamespace, proacl FROM pg_proc
            UNION ALL SELECT oid::regclass::text, relnamespace, relacl FROM pg_class
        ) AS everything (what, namespace, acl), aclexplode(acl)
        WHERE grantee::regrole::text = ANY (%s)
          AND (namespace <> 'inturn'::regnamespace OR is_grantable)
        """,
        [roles],
    )
    assert granted == []


def test_every_public_function_on_a_topic_has_a_call_for_each_role_that_may_call_it(
    database: Database,
) -> None:
    rows = database.execute("""
        SELECT proname::text, ARRAY(
            SELECT role FROM unnest('{caller,applier,operator}'::text[]) r (role)
            WHERE has_function_privilege('inturn_' || role, p.oid, 'EXECUTE'))
        FROM pg_proc p WHERE pronamespace = 'inturn'::regnamespace AND proname !~ '^_'
        AND proargnames[1:pronargs] && '{topic,topics,of_topic}'
    """)
    expected = {(role, name) for name, roles in rows for role in roles}
    called = {(role, match[1]) for role, _, call in TOPICS if (match := re.search(r"inturn\.(\w+)\(", call))}
    without_topic = {("applier", "apply")}
    assert expected - called == set()
    assert {pair for pair in called - expected if pair[0] != "admin"} - without_topic == set()


@pytest.fixture
def topics(witness: Database) -> Database:
    """Topics `theirs`, granted to others in every role, `own`, and `open`; key y is held in each."""
    others = f"others_{witness.name}"
    witness.execute(f"CREATE ROLE {others}")
    witness.execute("GRANT USAGE ON SCHEMA app TO PUBLIC")
    for topic in ("theirs", "own", "open"):
        witness.execute("SELECT inturn.create_topic(%s, 'sql:app.apply_order', max_attempts => 1)", [topic])
        witness.execute(
            "SELECT inturn.append(%s, 'y', 'fail'), inturn.append(%s, 'x', 'insert')", [topic] * 2
        )
    witness.execute("CALL inturn.apply()")
    for topic in ("theirs", "own", "open"):
        witness.execute("SELECT inturn.append(%s, 'x', 'insert')", [topic])
    for role in ("caller", "applier", "operator"):
        witness.execute("SELECT inturn.grant_topic('theirs', %s, %s)", [role, others])
    return witness


def _said(session: psycopg.Connection[Any], call: str, topic: str) -> str:
    """Make a call, and return the SQLSTATE of its refusal; nothing when it is done."""
    try:
        session.execute(call.format(topic=topic))
    except psycopg.Error as error:
        return error.sqlstate or "?"
    return ""


@pytest.mark.parametrize("role", ROLES)
def test_grants_of_topics_keep_out_whom_they_say(topics: Database, role: str) -> None:
    session, nobody = connect_as(topics, f"inturn_{role}"), connect_as(topics)
    if role != "admin":
        topics.execute("SELECT inturn.grant_topic('own', %s, %s)", [role, session.info.user])
    kept = (
        "SELECT c, m FROM inturn.key_cursor c, inturn.topic m WHERE c.topic = 'theirs' AND m.name = 'theirs'"
    )
    before = topics.execute(kept)
    wrong = []
    for of_role, answer, call in TOPICS:
        if of_role != role:
            continue
        said = {topic: _said(session, call, topic) for topic in ("own", "open", "theirs")}
        theirs = said.pop("theirs")
        if {NOT_GRANTED, DENIED} & {*said.values()} or _said(nobody, call, "open") != DENIED:
            wrong.append((call, said))
        elif (theirs != ANSWERS[answer]) if answer in ANSWERS else theirs in {NOT_GRANTED, DENIED, FENCED}:
            wrong.append((call, {"theirs": theirs}))
    assert not wrong, "\n".join(map(str, wrong))
    if role != "admin":
        assert topics.execute(kept) == before


def test_every_step_on_a_topic_that_runs_as_the_owner_has_a_line(database: Database) -> None:
    rows = database.execute(
        """
        SELECT proname::text FROM pg_proc p
        WHERE pronamespace = 'inturn'::regnamespace AND starts_with(proname, '_') AND prosecdef
        AND proargnames[1:pronargs] && '{topic,topics,name,named,key,keys}'
        AND EXISTS (SELECT FROM unnest(%s::text[]) r (role)
                    WHERE has_function_privilege('inturn_' || role, p.oid, 'EXECUTE'))
        """,
        [list(ROLES)],
    )
    called = [re.findall(r"inturn\.(\w+)\(", call) for _, call in STEPS]
    assert {name for (name,) in rows} == {name for names in called for name in names}


def _answers(session: psycopg.Connection[Any], call: str, epoch: int) -> list[object]:
    """Return what a step answers of key x of topic `theirs`, and of a key that is not there."""
    answers: list[object] = []
    for key in ("x", "absent"):
        try:
            with session.transaction(force_rollback=True):
                answers.append(session.execute(call.format(topic="theirs", key=key, epoch=epoch)).fetchall())
        except psycopg.Error as error:
            answers.append(error.sqlstate)
    return answers


def test_no_step_tells_an_applier_of_a_key_that_is_others(topics: Database) -> None:
    """An epoch can be guessed."""
    applier, owner = connect_as(topics, "inturn_applier"), topics.connect(user=OWNER)
    claim = "SELECT epoch FROM inturn.claim('{theirs}'::text[], 1, '1 hour', 'theirs')"
    ((epoch,),) = owner.execute(claim).fetchall()
    topics.execute("UPDATE inturn.turn SET outcome = 'retrying', started_at = finished_at - interval '1 s'")
    topics.execute(
        "INSERT INTO inturn.skip VALUES ('theirs', 'x', 1, 1, 'handler');"
        f"INSERT INTO inturn.merge_plan VALUES ('theirs', 'x', {epoch}, 2, 2, 3, 3, 'last', 'a', '{{}}')"
    )
    wrong = []
    for answer, call in STEPS:
        leased, absent = _answers(applier, call, epoch)
        known = _answers(owner, call, epoch)
        right = {
            "refused": leased == NOT_GRANTED,
            "hidden": leased == absent and known[0] != known[1],
            "same": leased == absent and known[0] == known[1],
            "plain": not isinstance(leased, str),
        }
        if not right[answer]:
            wrong.append((answer, call, leased, absent, known))
    assert not wrong, "\n".join(map(str, wrong))
