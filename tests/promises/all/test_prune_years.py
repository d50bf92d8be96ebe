"""What years bring to a prune: too little time, clocks that were wrong, settings that change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from support.database import Database, Session
from support.race import append, blocked
from support.roles import DEPLOYER, OPERATOR, OWNER

_APPLY = "CALL inturn.apply()"


@pytest.fixture
def topics(witness: Database) -> Database:
    """Topics orders, x, y and z, each with a command that was applied and need not be kept."""
    for topic in "xyz":
        witness.execute("SELECT inturn.create_topic(%s, 'sql:app.apply_order')", [topic])
        witness.execute("SELECT inturn.append(%s, 'a', 'insert')", [topic])
    append(witness, "a")
    witness.execute("UPDATE inturn.topic SET retain = '1 us'")
    witness.execute(_APPLY)
    return witness


def _left(database: Database) -> list[str]:
    """Return the topics that have commands still."""
    return [name for (name,) in database.execute("SELECT DISTINCT topic FROM inturn.command_log ORDER BY 1")]


@contextmanager
def _shut(database: Database, topic: str) -> Iterator[None]:
    """Let a prune of a topic wait, before its next batch, while the block runs."""
    holder = database.session(user=OWNER)
    holder.execute("SELECT pg_advisory_xact_lock(inturn._prune_lock(%s))", [topic])
    yield
    holder.commit()


def _pruning(database: Database) -> Session:
    return database.session(user=OPERATOR, autocommit=True)


def test_a_prune_begins_with_the_topic_that_was_not_pruned_for_the_longest(topics: Database) -> None:
    """Otherwise those that max_seconds ends would all begin with the same one, and never come to the last."""
    for topic in ("orders", "y", "x"):
        topics.execute("CALL inturn.prune(%s)", [topic])
        topics.execute("SELECT inturn.append(%s, 'a', 'insert')", [topic])
    topics.execute(_APPLY)
    pruning = _pruning(topics)
    with _shut(topics, "orders"):
        running = pruning.begin("CALL inturn.prune()")
        assert blocked(topics, pruning, running)
        assert _left(topics) == ["orders", "x", "y"], "z first, which no prune has come to"
    assert running.result() == [(4, 3, 0, True)]
    order = "SELECT inturn._topics_to_prune(NULL)"
    assert topics.value(order) == ["z", "orders", "y", "x"]
    # One that began before a clock was set back; and one whose keys another operator may not see.
    topics.execute("UPDATE inturn.prune_pass SET began_at = now() + interval '1 year' WHERE topic = 'x'")
    topics.execute("SELECT inturn.grant_topic('orders', 'operator', %s)", [DEPLOYER])
    with topics.connect(user=OPERATOR) as operator:
        assert operator.execute(order).fetchone() == (["x", "z", "orders", "y"],)
        assert operator.execute("SELECT inturn._topics_to_prune('1 day')").fetchone() == (["x", "z", "y"],)


@pytest.mark.parametrize(
    ("call", "change", "told"),
    [
        ("CALL inturn.prune()", "SELECT inturn.set_topic('x', retain => '0')", "IT070"),
        (
            "CALL inturn.prune(older_than => '0')",
            f"SELECT inturn.grant_topic('x', 'operator', '{DEPLOYER}')",
            "IT014",
        ),
    ],
    ids=["a retain that is taken away", "a topic that is granted to others"],
)
def test_what_need_not_be_pruned_any_more_is_left_out_and_the_prune_goes_on(
    topics: Database, call: str, change: str, told: str
) -> None:
    pruning = _pruning(topics)
    with _shut(topics, "orders"):
        running = pruning.begin(call)
        assert blocked(topics, pruning, running)
        topics.execute(change)
    assert running.result() == [(3, 0, 0, True)]
    assert _left(topics) == ["x"]
    # Who names it is told.
    refused = pruning.begin(call.replace("prune(", "prune('x', ").replace(", )", ")")).exception()
    assert isinstance(refused, psycopg.Error)
    assert refused.sqlstate == told
