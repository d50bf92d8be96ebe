"""P2: never two appliers at work on one key. P3: the applied commands of a key are at every moment a
gap-free prefix of its committed ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg
import pytest
from support import scenes
from support.combinations import sizes
from support.crowd import Crowd, together
from support.database import Database, until
from support.oracle import Oracle
from support.race import Turn, append, unblocked
from support.roles import APPLIER, OWNER

from inturn.applier import Applier, Command, Fleet
from inturn.applier.inside.batch import OLDEST, Target
from inturn.applier.inside.python_target import PythonTarget
from inturn.applier.inside.sql_target import SqlTarget
from inturn.applier.stop import Stop

ISOLATIONS = ["repeatable read", "serializable"]


@pytest.fixture
def oracle(witness: Database) -> Oracle:
    return Oracle(witness)


@pytest.fixture
def crowd(witness: Database, oracle: Oracle) -> Crowd:
    return Crowd(witness)


def write_witness(connection: psycopg.Connection[Any], command: Command) -> None:
    connection.execute(
        "INSERT INTO app.witness (key, seq, name) VALUES (%s, %s, %s)",
        [command.key, command.seq, command.name],
    )
    if command.name == "fail":
        raise ValueError(f"refused {command.key}")


def handlers(topic: str) -> Applier:
    """What app.apply_order does, in Python."""
    applier = Applier()
    applier.handler(topic)(write_witness)
    return applier


@contextmanager
def fleet(database: Database, applier: Applier | None, workers: int) -> Iterator[Fleet]:
    """Keep a fleet at work while the block runs."""
    fleet = Fleet(database.applier_dsn, applier, workers=workers)
    fleet.start()
    try:
        yield fleet
    finally:
        outcome = fleet.end(grace=20)
        assert outcome.error is None
        assert not outcome.cut


def apply_by_sql(database: Database) -> None:
    database.execute("CALL inturn.apply()")


def apply_by_python(database: Database) -> None:
    """Apply topic orders by Python handlers until nothing is ready."""
    database.execute("UPDATE inturn.topic SET target = 'python' WHERE name = 'orders'")
    fleet = Fleet(database.applier_dsn, handlers("orders"), drain=True)
    fleet.start()
    assert fleet.wait(60)
    assert fleet.end(grace=20).error is None


APPLYING = [apply_by_sql, apply_by_python]


@sizes("transactions", 250, rest=500)
def test_p2_p3_prefix_at_every_step_many_appliers_many_callers(
    witness: Database, oracle: Oracle, crowd: Crowd, transactions: int
) -> None:
    """SQL procedures and Python fleets side by side, skewed keys, rollbacks, and the oracle looking on."""
    witness.execute("SELECT inturn.create_topic('parcels')")
    with (
        oracle.watching(),
        fleet(witness, handlers("parcels"), workers=2),
        fleet(witness, handlers("parcels"), workers=2),
    ):
        with crowd.applying(2):
            crowd.run(
                [f"CALL app.call('orders', {transactions}, 12, 'orders ')"] * 3
                + [f"CALL app.call('parcels', {transactions * 3 // 5}, 12, 'parcels ')"] * 3
            )
        oracle.wait_no_key_ready()
    assert oracle.check_drained() > 8 * transactions
    appliers = witness.execute(
        "SELECT topic, count(DISTINCT applier) FROM inturn.turn GROUP BY topic ORDER BY 1"
    )
    assert [topic for topic, _ in appliers] == ["orders", "parcels"]
    assert min(count for _, count in appliers) >= 2, "only one applier was ever at work"


@pytest.mark.parametrize("max_keys", [1, 32])
def test_p2_p3_prefix_with_one_hot_key_and_short_batches(
    witness: Database, oracle: Oracle, crowd: Crowd, max_keys: int
) -> None:
    """Turns end in the middle of a key all the time, and other appliers go on with it."""
    witness.execute("UPDATE inturn.topic SET batch_commands = 3")
    crowd.call(3, "'orders', 120, 1, rollbacks => 0")
    append(witness, "other")
    with oracle.watching():
        crowd.run([f"CALL inturn.apply(max_keys => {max_keys})"] * 4)
    oracle.wait_no_key_ready()
    assert oracle.check_drained() > 600


def test_p2_locked_head_never_the_same_key_s_next_command(witness: Database, oracle: Oracle) -> None:
    scenes.claim_beside_a_locked_head(witness, oracle)


@pytest.mark.parametrize("planner", ["", "-c enable_hashjoin=off -c enable_mergejoin=off"])
def test_p2_locked_head_with_stale_statistics(witness: Database, oracle: Oracle, planner: str) -> None:
    """Statistics from when the tables were empty; one key a claim, whatever the plan."""
    for table in ("ticket", "key_mark", "turn", "key_sequence", "command_log"):
        witness.execute(f"ALTER TABLE inturn.{table} SET (autovacuum_enabled = off)")
        witness.execute(f"ANALYZE inturn.{table}")
    witness.execute(
        "SELECT inturn.append_many('orders', array_agg('k' || n % 100), array_agg('insert'::text))"
        " FROM generate_series(1, 1000) n"
    )
    sessions = [witness.session(options=planner) for _ in range(4)]
    claims = [
        Turn.claim(witness, session, max_keys)
        for session, max_keys in zip(sessions, (1, 1, 7, 500), strict=True)
    ]
    assert [len(turns) for turns in claims] == [1, 1, 7, 91]
    assert len({turn.key for turns in claims for turn in turns}) == 100
    beside = witness.session(options=planner)
    assert Turn.claim(witness, beside) == []
    apply_batch = "SELECT keys, commands FROM inturn.apply_batch('orders', '-infinity', 32, 'beside')"
    assert unblocked(witness, beside, apply_batch, []) == [(0, 0)]
    sessions[0].rollback()
    assert unblocked(witness, beside, apply_batch, []) == [(1, 10)]
    beside.commit()
    for session in sessions:
        session.rollback()
    assert scenes.drain(witness, oracle) == 1000


def test_p2_a_fenced_finish_changes_nothing(witness: Database, oracle: Oracle) -> None:
    """Nor do the turns that it would have ended together with the fenced one."""
    for key in ("x", "y", "x"):
        append(witness, key)
    late, other = witness.session(), witness.session()
    turns = Turn.claim(witness, late, max_keys=2)
    late.commit()
    (again,) = Turn.claim(witness, other)
    assert again == turns[0] == Turn("x", 0, 1)
    again.effects(other, 1)
    other.execute(*again.finish(1))
    other.commit()
    state = """SELECT (SELECT array_agg(c ORDER BY key) FROM inturn.key_cursor c),
        (SELECT array_agg(s ORDER BY key) FROM inturn.key_sequence s), (SELECT count(*) FROM inturn.turn)"""
    before = witness.execute(state)
    scenes.refused(late, scenes.FENCED, turns[0].finish(1))
    scenes.refused(late, scenes.FENCED, turns[0].finish(2))
    scenes.refused(late, scenes.FENCED, turns[0].fail(1))
    scenes.refused(late, scenes.FENCED, turns[0].fail(2))
    scenes.refused(
        late,
        scenes.FENCED,
        ("SELECT inturn.finish('orders', '{y,x}', '{1,1}', '{1,1}', '{1,1}', 'late')", []),
    )
    assert witness.execute(state) == before
    assert scenes.drain(witness, oracle) == 3


def test_p2_a_late_finish_after_a_failed_turn_is_fenced(witness: Database, oracle: Oracle) -> None:
    scenes.late_finish_after_a_failed_turn(witness, oracle)


def test_p2_a_finish_without_its_claim_is_fenced(witness: Database, oracle: Oracle) -> None:
    scenes.finish_without_the_claim(witness, oracle)


def test_p2_a_finish_that_begins_elsewhere_is_fenced(witness: Database, oracle: Oracle) -> None:
    scenes.finish_of_another_stand(witness, oracle)


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_p2_a_turn_outside_read_committed_is_refused(
    witness: Database, oracle: Oracle, isolation: str
) -> None:
    scenes.turn_on_one_snapshot(witness, oracle, isolation)


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_p2_apply_is_right_under_another_default_isolation(
    witness: Database, oracle: Oracle, isolation: str
) -> None:
    scenes.apply_by_default_at(witness, oracle, isolation)


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_p2_p3_prefix_where_the_database_s_default_is_another_isolation(
    witness: Database, oracle: Oracle, crowd: Crowd, isolation: str
) -> None:
    """Appliers of both kinds, whose sessions inherit it, beside callers."""
    witness.execute("SELECT inturn.create_topic('parcels')")
    witness.execute(f"ALTER DATABASE {witness.name} SET default_transaction_isolation = '{isolation}'")
    read_committed = "-c default_transaction_isolation=read\\ committed"
    with oracle.watching(), fleet(witness, handlers("parcels"), workers=2), crowd.applying(2):
        crowd.run(
            [
                f"CALL app.call('{topic}', 120, 6, '{topic} ')"
                for topic in ("orders", "parcels")
                for _ in range(2)
            ],
            options=read_committed,
        )
        until(
            lambda: not witness.value("SELECT count(*) FROM inturn.key_cursor WHERE ready_at IS NOT NULL"),
            "no key ready",
        )
    assert oracle.check_drained() > 500


def test_p3_commands_of_a_turn_are_applied_in_order(witness: Database, oracle: Oracle) -> None:
    scenes.order_within_a_turn(witness, oracle)


def commands(database: Database, key: str, *names: str) -> None:
    for name in names:
        database.execute("SELECT inturn.append('orders', %s, %s)", [key, name])


def effects(database: Database, key: str) -> list[int]:
    return [
        seq for (seq,) in database.execute("SELECT seq FROM app.witness WHERE key = %s ORDER BY id", [key])
    ]


@pytest.mark.parametrize("apply", APPLYING)
@pytest.mark.parametrize("beside", [0, 3], ids=["alone", "beside_others"])
def test_p3_a_failing_command_stops_its_key_and_no_other(
    witness: Database, oracle: Oracle, apply: Callable[[Database], None], beside: int
) -> None:
    """What came before it stays, what comes after it waits, the keys beside it go on."""
    witness.execute("UPDATE inturn.topic SET backoff_base = '1 hour', backoff_cap = '1 day'")
    commands(witness, "x", "insert", "insert", "fail", "insert")
    others = [f"y{n}" for n in range(beside)]
    for key in others:
        commands(witness, key, "insert", "insert")
    apply(witness)
    assert effects(witness, "x") == [1, 2]
    assert [effects(witness, key) for key in others] == [[1, 2]] * beside
    attempts, error, held_at, wait = witness.execute(
        "SELECT attempts, last_error, held_at, extract(epoch FROM ready_at - failed_at)"
        " FROM inturn.key_cursor WHERE key = 'x'"
    )[0]
    assert (attempts, held_at) == (1, None)
    assert "refused x" in error
    assert 1800 <= wait <= 3600
    append(witness, "x")
    apply(witness)
    assert effects(witness, "x") == [1, 2]
    oracle.check()
    outcomes = "SELECT from_seq, to_seq, outcome FROM inturn.turn WHERE key = 'x' ORDER BY epoch"
    assert witness.execute(outcomes) == [(1, 2, "retrying")]


@pytest.mark.parametrize(
    "target",
    [
        SqlTarget("orders", "inturn", "sql", Stop()),
        PythonTarget("orders", handlers("orders"), Stop(), "inturn", "python"),
    ],
    ids=lambda target: target.applier_id,
)
def test_p3_a_poison_command_is_retried_ever_later_then_held(
    witness: Database, oracle: Oracle, target: Target
) -> None:
    """Its error is kept, its callers and the other keys go on, and nobody passes it."""
    commands(witness, "x", "insert", "fail", "insert")
    for attempt in range(1, 5):
        until(partial(fails_again, witness, target, attempt), f"attempt {attempt}")
        wait = witness.value("SELECT extract(epoch FROM ready_at - failed_at)::float FROM inturn.key_cursor")
        assert 0.005 * 2 ** (attempt - 1) <= round(wait, 6) <= 0.010 * 2 ** (attempt - 1)
        append(witness, "x")
        oracle.check()
    until(partial(fails_again, witness, target, 5), "attempt 5")
    cursor = """SELECT ready_at, held_at IS NOT NULL, applied_seq, last_error ~ 'refused x'
        FROM inturn.key_cursor WHERE key = %s"""
    assert witness.execute(cursor, ["x"]) == [(None, True, 1, True)]
    assert append(witness, "x") == 8
    commands(witness, "y", "insert")
    fails_again(witness, target, 5)
    assert witness.execute(cursor, ["x"]) == [(None, True, 1, True)]
    assert (effects(witness, "x"), effects(witness, "y")) == ([1], [1])
    oracle.check()
    outcomes = "SELECT outcome, to_seq FROM inturn.turn WHERE key = 'x' ORDER BY epoch"
    assert witness.execute(outcomes) == [("retrying", 1)] * 4 + [("held", 1)]


def fails_again(database: Database, target: Target, attempt: int) -> bool:
    """Take one turn if one is due; return whether the command has now failed that often."""
    with database.connect(user=APPLIER) as connection:
        target.apply_batch(connection, OLDEST, 32)
    return bool(database.value("SELECT attempts FROM inturn.key_cursor WHERE key = 'x'") == attempt)


def test_p3_a_held_key_s_appends_go_on(witness: Database, oracle: Oracle) -> None:
    scenes.append_to_a_held_key(witness, oracle)


def test_p6_a_caller_waits_for_no_handler_beside_its_failed_key(witness: Database, oracle: Oracle) -> None:
    scenes.callers_of_a_key_whose_turn_has_failed(witness, oracle)


def test_p3_a_key_is_not_tried_again_before_its_time(witness: Database, oracle: Oracle) -> None:
    scenes.claim_before_its_time(witness, oracle)


def test_p3_prefix_with_poison_among_a_crowd(witness: Database, oracle: Oracle, crowd: Crowd) -> None:
    """Failing turns between many others: their keys end held at the poison, all others are drained."""
    witness.execute("UPDATE inturn.topic SET max_attempts = 3, backoff_base = '1 ms'")

    def poison() -> None:
        with witness.connect(user=OWNER) as connection:
            for n in range(6):
                connection.execute("SELECT app.append('orders', %s, 'fail')", [f"p{n}"])

    def callers() -> None:
        crowd.run(
            ["CALL app.call('orders', 150, 40, 'k')"] * 3
            + ["CALL app.call('orders', 60, 6, 'p', rollbacks => 0)"]
        )

    with oracle.watching(), crowd.applying(3):
        together([callers, poison])
    held = witness.execute(
        "SELECT key, applied_seq + 1 FROM inturn.key_cursor WHERE held_at IS NOT NULL ORDER BY key"
    )
    assert held == witness.execute(
        "SELECT key, min(seq) FROM inturn.command_log WHERE name = 'fail' GROUP BY key ORDER BY key"
    )
    assert oracle.check_drained("k%") > 500


def test_p2_a_claim_that_does_not_say_of_how_many_keys_claims_none(witness: Database) -> None:
    """Not all of them: LIMIT NULL is no limit."""
    append(witness, "x")
    assert witness.execute("SELECT key FROM inturn.claim('orders', max_keys => NULL)") == []
