"""Idempotency keys that begin with `inturn.`, by which a replay is known, are not for callers."""

from __future__ import annotations

from itertools import product

import psycopg
import pytest
from support.arrivals import number
from support.database import Database
from support.logins import connect_as
from support.process import run_inturn
from support.refusal import refusal

from inturn.outbox import IdempotencyKeyRefused, append

APPEND = "SELECT inturn.append(%s, 'x', 'pay', '{}', %s)"


@pytest.fixture
def topics(witness: Database) -> Database:
    """The orders, `posts`, which numbers on arrival, and a command applied in key x of each."""
    witness.execute("SELECT inturn.create_topic('posts', 'sql:app.apply_order', numbering => 'arrival')")
    for topic in ("orders", "posts"):
        witness.execute(APPEND, [topic, None])
    number(witness)
    witness.execute("CALL inturn.apply()")
    return witness


def test_a_caller_cannot_take_one(topics: Database) -> None:
    caller = connect_as(topics, "inturn_caller")
    some = ("inturn.replay:1", "inturn.", "inturn.anything")
    for topic, key, reserved in product(("orders", "posts"), ("new", "x"), some):
        said = refusal(caller, "SELECT inturn.append(%s, %s, 'pay', '{}', %s)", [topic, key, reserved])
        assert said.sqlstate == "IT005", (topic, key, reserved)
        assert "begins with inturn." in said.message
        many = "SELECT inturn.append_many(%s, ARRAY[%s, %s], '{a,b}', NULL, ARRAY[NULL, %s])"
        assert refusal(caller, many, [topic, key, key, reserved]).sqlstate == "IT005", (topic, key, reserved)
        outbox = "INSERT INTO inturn.outbox (topic, key, name, idempotency_key) VALUES (%s, %s, 'a', %s)"
        assert refusal(caller, outbox, [topic, key, reserved]).sqlstate == "IT005", (topic, key, reserved)
        with pytest.raises(IdempotencyKeyRefused):
            append(caller, topic, key, "pay", idempotency_key=reserved)
    assert topics.value("SELECT count(*) FROM inturn.command_log") == 2
    assert topics.value("SELECT count(*) FROM inturn.key_sequence WHERE key = 'new'") == 0


def test_what_only_looks_like_one_is_taken(topics: Database) -> None:
    for seq, other in enumerate(("Inturn.replay:1", "inturn", "intern.x", " inturn.replay:1"), 2):
        assert topics.value(APPEND, ["orders", other]) == seq


@pytest.mark.parametrize("topic", ["orders", "posts"])
def test_a_replay_goes_through_wakes_its_key_and_verify_is_clean(topics: Database, topic: str) -> None:
    caller, operator = connect_as(topics, "inturn_caller"), connect_as(topics, "inturn_operator")
    with pytest.raises(psycopg.Error):
        caller.execute(APPEND, [topic, "inturn.replay:1"])
    assert operator.execute(
        "SELECT (inturn.replay(%s, 'x', 1, 'again')).after ->> 'seq'", [topic]
    ).fetchone() == ("2",)
    # At once: the key is awake when the operator's transaction is over.
    awake = "SELECT applied_seq FROM inturn.ticket WHERE topic = %s AND key = 'x' AND ready_at <= now()"
    assert topics.execute(awake, [topic]) == [(1,)]
    topics.execute("CALL inturn.apply()")
    assert (
        topics.value("SELECT applied_seq FROM inturn.key_cursor WHERE topic = %s AND key = 'x'", [topic]) == 2
    )
    said = refusal(operator, "SELECT inturn.replay(%s, 'x', 1, 'again')", [topic])
    assert (said.sqlstate, "replayed before, as 2" in said.message) == ("IT041", True)
    assert run_inturn(topics.dsn, "verify")[0] == 0


def test_a_replay_of_a_payload_that_is_over_the_limit_by_now_is_refused(topics: Database) -> None:
    topics.execute("SELECT inturn.append('orders', 'long', 'pay', to_jsonb(repeat('x', 2000)))")
    topics.execute("CALL inturn.apply()")
    topics.execute("SELECT inturn.set_topic('orders', max_payload_bytes => 1024)")
    assert refusal(topics, "SELECT inturn.replay('orders', 'long', 1, 'again')").sqlstate == "IT003"
