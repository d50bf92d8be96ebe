"""Any arguments for every public function, by whoever may call it: done, or refused by an error of ours."""

from __future__ import annotations

import re
from typing import Any

import psycopg
import pytest
from hypothesis import strategies as st
from support.database import Database
from support.hostile import (
    DOCUMENTS,
    SPANS,
    TIMES,
    Digest,
    attack,
    bigints,
    floats,
    integers,
    keys,
    shop,
    texts,
    topics,
    unbroken,
)
from support.logins import connect_as
from support.roles import CALLER, OWNER

EXAMPLES = 20
_FUNCTIONS = """
    SELECT p.oid::regprocedure::text, p.proname::text, p.prokind = 'p', p.pronargs - p.pronargdefaults,
           p.proargnames[1:p.pronargs], ARRAY(SELECT format_type(t, NULL) FROM unnest(p.proargtypes) t)
    FROM pg_proc p WHERE p.pronamespace = 'inturn'::regnamespace AND p.proname !~ '^_' ORDER BY 1"""
_MAY = "SELECT has_function_privilege(%s, %s, 'EXECUTE')"
#: It waits as long as it is told to: then the statement's own time is over.
WAITS = {"wait"}
#: Besides ours: a privilege, a parameter that a claim documents, a transaction to be run again.
DOCUMENTED = {"42501", "22004", "22023", "40001"}

_OF_TYPE: dict[str, st.SearchStrategy[Any]] = {
    "text": texts,
    "integer": integers,
    "bigint": bigints,
    "double precision": floats.map(str),
    "boolean": st.booleans(),
    "interval": st.sampled_from(SPANS),
    "timestamp with time zone": st.sampled_from(TIMES),
    "jsonb": st.sampled_from(DOCUMENTS),
    "inturn.key_cursor": st.sampled_from(["(orders,x,0,,0,0,0,,,,,,,,,,0)", "(,,,now,,,,,,,,,,,,,)"]),
}
_ARRAYS = st.sampled_from(["{}", "{{a,b},{c,d}}", "[3:4]={a,b}", "{NULL}"])


def _values(name: str, kind: str) -> st.SearchStrategy[Any]:
    """Return what an argument may be given, by its name and its type."""
    if kind.endswith("[]"):
        each = topics if name == "topics" else _values(name, kind[:-2])
        lists = st.lists(st.one_of(st.none(), each), max_size=4)
        odd = {"text[]": _ARRAYS, "bigint[]": _ARRAYS.map(lambda array: re.sub("[a-d]", "1", array))}
        return st.one_of(st.none(), lists, odd.get(kind, lists))
    named = {
        "topic": topics,
        "of_topic": topics,
        "key": keys,
        "of_key": keys,
        "from_key": keys,
        "to_key": keys,
    }
    return st.one_of(named.get(name, _OF_TYPE[kind]), st.none())


def _calls(row: tuple[Any, ...]) -> st.SearchStrategy[tuple[str, list[Any]]]:
    """Return the calls of a function: what it needs, and any of what it may be given besides."""
    _, name, is_procedure, required, names, kinds = row
    named = list(zip(names or [], kinds, strict=True))
    needed = st.tuples(*(_values(*each) for each in named[:required]))
    more = st.fixed_dictionaries(
        {}, optional={place: _values(*named[place]) for place in range(required, len(named))}
    )

    def call(given: tuple[tuple[Any, ...], dict[int, Any]]) -> tuple[str, list[Any]]:
        values = {**dict(enumerate(given[0])), **given[1]}
        listed = ", ".join(f'"{named[place][0]}" => %s::{named[place][1]}' for place in values)
        verb = "CALL" if is_procedure else "SELECT * FROM"
        return f"{verb} inturn.{name}({listed})", list(values.values())

    return st.tuples(needed, more).map(call)


def _wrong(error: psycopg.Error, name: str) -> str | None:
    """Return what is wrong with a refusal: it is none of ours, or not said in a line."""
    state, diagnostic = error.sqlstate or "", error.diag
    if name in WAITS and state == "57014":
        return None
    # RAISE is the only way to refuse: everything else has only happened to a body.
    if diagnostic.source_function != "exec_stmt_raise" or not (state.startswith("IT") or state in DOCUMENTED):
        return f"{state} of {diagnostic.source_function} {error}\n{diagnostic.context}"
    return None if (diagnostic.message_primary or "").strip() else "it says nothing"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("role", ["caller", "applier", "operator", "admin", "owner"])
def test_any_call_is_done_or_refused_by_name(witness: Database, role: str) -> None:
    database = shop(witness)
    session = database.connect(user=OWNER) if role == "owner" else connect_as(database, f"inturn_{role}")
    session.execute("SET client_min_messages = error")
    functions = [
        row
        for row in database.execute(_FUNCTIONS)
        if (
            row[1] in ("grant_topic", "revoke_topic")
            if role == "owner"
            else database.value(_MAY, [f"inturn_{role}", row[0]])
        )
    ]
    assert functions
    digest, outcomes, wrong = Digest(database), {"done": 0, "refused": 0}, []
    for row in functions:
        session.execute(f"SET statement_timeout = {50 if row[1] in WAITS else 0}")
        try:
            _attack_one(session, row, digest, outcomes)
            assert unbroken(database) == [], row[0]
        except AssertionError as found:
            wrong.append(str(found))
    assert not wrong, "\n".join(wrong)
    assert outcomes["refused"]
    assert outcomes["done"] or role == "owner"  # who needs a login's name, and gets none


def _attack_one(
    session: psycopg.Connection[Any], row: tuple[Any, ...], digest: Digest, outcomes: dict[str, int]
) -> None:
    """Call a function as it is not meant to be called."""

    @attack(EXAMPLES, _calls(row))
    def _(call: tuple[str, list[Any]]) -> None:
        query, values = call
        before = digest.read()
        try:
            session.execute(query, values)
        except psycopg.Error as error:
            outcomes["refused"] += 1
            wrong = _wrong(error, row[1])
            assert wrong is None, f"{query} {values}: {wrong}"
            assert digest.read() == before, f"half done: {query} {values}"
        else:
            outcomes["done"] += 1


def test_an_error_that_is_not_raised_by_us_is_found(witness: Database) -> None:
    """The test above can fail: a body to which something happens, and none of ours says so."""
    session = witness.connect(user=CALLER)
    for body, what in (("1 / 0", "22012"), ("'x'::integer", "22P02"), ("nowhere.f()", "3F000")):
        witness.execute(f"""
            CREATE OR REPLACE FUNCTION app.f() RETURNS void LANGUAGE plpgsql AS
            $$ BEGIN PERFORM {body}; END $$""")
        with pytest.raises(psycopg.Error) as raised:
            session.execute("SELECT app.f()")
        assert str(_wrong(raised.value, "f")).startswith(what)
    with pytest.raises(psycopg.Error) as raised:
        session.execute("SELECT inturn.append('nowhere', 'x', 'insert')")
    assert _wrong(raised.value, "append") is None
