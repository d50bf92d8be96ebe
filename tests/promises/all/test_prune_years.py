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


def test_a_prune_of_a_topic_of_others_names_none_of_its_keys_and_goes_on_where_it_was(
    topics: Database,
) -> None:
    for key in "bcd":
        append(topics, key)
    topics.execute(_APPLY)
    topics.execute("SELECT inturn.grant_topic('orders', 'operator', %s)", [DEPLOYER])
    batch = "SELECT next_key, commands FROM inturn.prune_batch('orders', max_rows => 1)"
    with topics.connect(user=OPERATOR) as operator:
        assert [operator.execute(batch).fetchone() for _ in range(2)] == [("", 1)] * 2
        assert topics.execute("SELECT key FROM inturn.command_log WHERE topic = 'orders' ORDER BY key") == [
            ("a",), ("b",)
        ]  # fmt: skip
        # It does not begin anew: what has come since, before where it stands, is left for the next one.
        append(topics, "d")
        topics.execute(_APPLY)
        assert operator.execute("CALL inturn.prune('orders')").fetchone() == (2, 0, 0, True)
        assert operator.execute("CALL inturn.prune('orders')").fetchone() == (1, 1, 0, True)
    # Whoever may see them is told.
    append(topics, "c")
    append(topics, "d")
    topics.execute(_APPLY)
    assert topics.connect(user=OWNER).execute(batch).fetchone() == ("d", 1)


def _turns(database: Database, number: int) -> None:
    """Apply so many commands of key a, each in a turn of its own, which then lies two days back."""
    for _ in range(number):
        database.execute(
            "SELECT inturn.append('orders', 'a', 'insert', idempotency_key => gen_random_uuid()::text)"
        )
        database.execute(_APPLY)
    database.execute(
        "UPDATE inturn.turn SET started_at = started_at - interval '2 days',"
        " finished_at = finished_at - interval '2 days'"
    )
    database.execute("UPDATE inturn.command_log SET created_at = created_at - interval '2 days'")


_TURN_AHEAD = "UPDATE inturn.turn SET finished_at = now() + interval '1 year' WHERE epoch = ANY (%s)"
_COMMAND_AHEAD = "UPDATE inturn.command_log SET created_at = now() + interval '1 year' WHERE seq = ANY (%s)"


def test_a_turn_dated_by_a_clock_that_was_ahead_goes_with_the_next_one_that_is_old_enough(
    witness: Database,
) -> None:
    """Otherwise nothing of its key would go until that date has come."""
    witness.execute("UPDATE inturn.topic SET retain = '1 day'")
    _turns(witness, 5)
    witness.execute(_TURN_AHEAD, [[1, 3, 5]])
    # However little goes at a time: it says that there is more.
    batch = "SELECT next_key, commands, turns FROM inturn.prune_batch('orders', max_rows => 3)"
    assert witness.execute(batch) == [("a\x01", 2, 1)]
    assert witness.execute("CALL inturn.prune()") == [(2, 2, 0, True)]
    # The last one stays: it may be of today.
    assert witness.execute("SELECT seq FROM inturn.command_log") == [(5,)]
    assert witness.execute("SELECT epoch FROM inturn.turn ORDER BY 1") == [(4,), (5,)]
    assert witness.execute("SELECT * FROM inturn.verify('orders')") == []
    assert witness.execute("CALL inturn.prune()") == [(0, 0, 0, True)]


def test_a_command_kept_for_its_idempotency_key_goes_with_the_next_one_too(witness: Database) -> None:
    witness.execute("UPDATE inturn.topic SET retain = '1 day', retain_idempotency = '10 days'")
    _turns(witness, 4)
    witness.execute("CALL inturn.prune()")
    history = "SELECT history_seq, kept_seq FROM inturn.key_sequence"
    assert witness.execute(history) == [(5, 1)]
    witness.execute("UPDATE inturn.command_log SET created_at = created_at - interval '10 days'")
    witness.execute(_COMMAND_AHEAD, [[1, 2, 4]])
    assert witness.execute("CALL inturn.prune()") == [(3, 0, 0, True)]
    assert witness.execute(history) == [(5, 4)]
    assert witness.execute("SELECT * FROM inturn.verify('orders')") == []
    # However few a batch removes, it comes to an end.
    assert witness.execute("SELECT next_key, commands FROM inturn.prune_batch('orders', max_rows => 1)") == [
        (None, 0)
    ]


def test_a_prune_is_recorded_also_after_a_clock_was_set_back(witness: Database) -> None:
    count = "SELECT count(*) FROM inturn.operator_action WHERE action = 'prune'"
    for expected in (1, 1, 2):
        append(witness, "a")
        witness.execute(_APPLY)
        witness.execute("SELECT inturn.prune_batch('orders', older_than => '0')")
        assert witness.value(count) == expected
        if witness.value("SELECT max(seq) FROM app.witness") == 2:
            witness.execute("UPDATE inturn.operator_action SET acted_at = now() + interval '1 year'")
