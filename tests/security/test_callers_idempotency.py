"""One caller's idempotency key beside another caller's: a repeat is found, anything else is refused."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import psycopg
import pytest
from support.arrivals import number
from support.database import Database
from support.logins import connect_as
from support.race import gate_shut, put_gate, replace_in
from support.refusal import Refusal, refusal
from support.roles import CALLER

from inturn.outbox import IdempotencyKeyReused, append

APPEND = "SELECT inturn.append(%s, %s, %s, %s::jsonb, %s)"
MANY = "SELECT inturn.append_many(%s, %s, %s, %s::jsonb[], %s)"
_ARGUMENTS = "SELECT '(' || pg_get_function_arguments(%s::regprocedure) || ')'"
OUTBOX = "INSERT INTO inturn.outbox (topic, key, name, payload, idempotency_key) VALUES (%s, %s, %s, %s, %s)"
FIRST = ["x", "pay", '{"secret": 7}', "once"]
#: other content for the same key
OTHERS = [["x", "refund", '{"secret": 7}', "once"], ["x", "pay", "{}", "once"]]
TOPICS = ["orders", "posts"]


@pytest.fixture
def topics(witness: Database) -> Database:
    """The orders, and topic `posts`, which numbers on arrival."""
    witness.execute("SELECT inturn.create_topic('posts', 'sql:app.apply_order', numbering => 'arrival')")
    return witness


def _commands(database: Database) -> list[tuple[Any, ...]]:
    return database.execute(
        "SELECT name, payload FROM inturn.command_log UNION ALL SELECT name, payload FROM inturn.intake"
    )


def _tells_nothing(said: Refusal) -> bool:
    return said.sqlstate == "IT008" and not {"pay", "refund", "secret"} & {
        *said.message.replace("'", " ").split(),
        *said.hint.split(),
    }


@pytest.mark.parametrize("numbered", [False, True])
@pytest.mark.parametrize("topic", TOPICS)
def test_a_key_with_other_content_is_refused_and_leaves_nothing_behind(
    topics: Database, topic: str, numbered: bool
) -> None:
    caller = connect_as(topics, "inturn_caller")
    caller.execute(APPEND, [topic, *FIRST])
    if numbered:
        number(topics)
        topics.execute("CALL inturn.apply()")
    for other in OTHERS:
        key, name, payload, once = other
        assert _tells_nothing(refusal(caller, APPEND, [topic, *other]))
        assert _tells_nothing(refusal(caller, OUTBOX, [topic, *other]))
        many = [topic, ["w", key], ["new", name], ["{}", payload], [None, once]]
        assert _tells_nothing(refusal(caller, MANY, many))
        with pytest.raises(IdempotencyKeyReused) as raised:
            append(caller, topic, key, name, {} if payload == "{}" else {"secret": 7}, idempotency_key=once)
        assert (raised.value.topic, raised.value.key) == (topic, "x")
    caller.execute(APPEND, [topic, "x", "pay", '{"secret": 7.0}', "once"])
    assert _commands(topics) == [("pay", {"secret": 7})]


@pytest.mark.parametrize("topic", TOPICS)
def test_two_in_flight_with_other_content_the_second_is_refused(topics: Database, topic: str) -> None:
    first, second = topics.session(), topics.session()
    first.execute(APPEND, [topic, *FIRST])
    waiting = second.begin(APPEND, [topic, *OTHERS[0]])
    assert second.wait_blocked() == [first.pid]
    first.commit()
    with pytest.raises(psycopg.Error) as raised:
        waiting.result()
    assert raised.value.sqlstate == "IT008"
    second.rollback()
    assert _commands(topics) == [("pay", {"secret": 7})]


@pytest.mark.parametrize(
    "level", [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE]
)
@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("topic", TOPICS)
def test_behind_an_older_snapshot_it_is_a_retry_and_then_refused(
    topics: Database, topic: str, moved: bool, level: psycopg.IsolationLevel
) -> None:
    caller = topics.session(user=CALLER)
    caller.connection.isolation_level = level
    caller.execute("SELECT FROM inturn.schema_version")  # takes the snapshot
    topics.execute(APPEND, [topic, *FIRST])
    if moved:
        number(topics)
    assert refusal(caller.connection, APPEND, [topic, *OTHERS[0]]).sqlstate == "40001"
    caller.rollback()
    assert refusal(caller.connection, APPEND, [topic, *OTHERS[0]]).sqlstate == "IT008"
    caller.rollback()
    assert _commands(topics) == [("pay", {"secret": 7})]


def test_a_snapshot_takes_a_key_that_nobody_has_and_leaves_no_trace_of_the_attempt(topics: Database) -> None:
    caller = topics.session()
    caller.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    for _ in range(2):
        assert caller.execute(APPEND, ["posts", *FIRST]) == [(None,)]
    caller.commit()
    assert number(topics) == 1
    assert topics.execute("SELECT seq, name FROM inturn.command_log") == [(1, "pay")]


def _overtake(database: Database, repeat: list[str]) -> Future[list[tuple[Any, ...]]]:
    """Begin a repeat that looks into the log before a pass moves the first command, and inserts after."""
    put_gate(database)
    edit = ("INSERT INTO inturn.intake AS i", "PERFORM app.gate_pass(); INSERT INTO inturn.intake AS i")
    database.execute(APPEND, ["posts", *FIRST])
    replace_in(database, "_append_arrival", edit)
    with gate_shut(database):
        caller = database.session(autocommit=True)
        appending = caller.begin(APPEND, ["posts", *repeat])
        caller.wait_blocked()
        assert number(database) == 1
    return appending


def test_a_repeat_that_overtakes_the_pass_which_numbers_the_first_is_found(topics: Database) -> None:
    assert _overtake(topics, FIRST).result() == [(1,)]
    assert _commands(topics) == [("pay", {"secret": 7})]


def test_one_with_other_content_is_refused_there_too(topics: Database) -> None:
    with pytest.raises(psycopg.Error) as raised:
        _overtake(topics, OTHERS[0]).result()
    assert raised.value.sqlstate == "IT008"
    assert _commands(topics) == [("pay", {"secret": 7})]


def test_without_the_look_after_the_insert_it_would_be_dropped_without_a_word(topics: Database) -> None:
    """What _end_repeat is there for."""
    replace_in(topics, "_append_arrival", ("numbered := inturn._end_repeat[^;]*;", "numbered := NULL;"))
    assert _overtake(topics, OTHERS[0]).result() == [(None,)]
    assert number(topics) == 0
    assert _commands(topics) == [("pay", {"secret": 7})]


@pytest.mark.parametrize("guard", ["_refuse_unseen", "_refuse_reuse"])
def test_without_its_guards_a_lost_command_goes_unnoticed(topics: Database, guard: str) -> None:
    arguments = {
        "_refuse_unseen": "(text, text, text)",
        "_refuse_reuse": "(text, text, bigint, text, jsonb, text)",
    }[guard]
    topics.execute(
        f"CREATE OR REPLACE FUNCTION inturn.{guard}{topics.value(_ARGUMENTS, [f'inturn.{guard}{arguments}'])}"
        " RETURNS void LANGUAGE plpgsql AS 'BEGIN END'"
    )
    caller = topics.session()
    if guard == "_refuse_unseen":
        caller.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    caller.execute("SELECT FROM inturn.schema_version")  # takes the snapshot
    topics.execute(APPEND, ["posts", *FIRST])
    number(topics)
    caller.execute(APPEND, ["posts", *OTHERS[0]])
    caller.commit()
    assert number(topics) == 0
    assert _commands(topics) == [("pay", {"secret": 7})]


@pytest.mark.parametrize("content", [("pay", '{"secret": 7}'), ("refund", '{"secret": 7}')])
def test_an_amended_command_may_be_repeated_as_it_was_and_as_it_is(
    topics: Database, content: tuple[str, str]
) -> None:
    topics.execute(APPEND, ["orders", *FIRST])
    topics.execute("SELECT inturn.amend('orders', 'x', 1, 'wrong', name => 'credit')")
    topics.execute("SELECT inturn.amend('orders', 'x', 1, 'wrong', name => 'refund')")
    assert topics.value(APPEND, ["orders", "x", *content, "once"]) == 1
    assert refusal(topics, APPEND, ["orders", "x", "credit", content[1], "once"]).sqlstate == "IT008"
