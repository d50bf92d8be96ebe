"""P5: beside a key that fails over and over, healthy commands take less than twice what they take without it.

Speed is measured by `bench.company`; here the work is counted that a rate is made of. Without a failure each
command is one call of its target, in a turn that it shares a transaction with, or one lease.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import psycopg
import pytest
from support import bad_company, bad_outside, left_behind, rounds, shop
from support.b_server import B
from support.bad_company import IN_PYTHON, IN_SQL, Fault, innocent_and_charged, kinds_here
from support.database import Database
from support.race import replace_in
from support.roles import OWNER
from support.rounds import Took
from support.ways import TOO_LONG_IN_PYTHON, TOO_LONG_IN_SQL

from inturn.applier import Applier

#: A turn that is taken alone takes up to five times what one takes in a batch: more would halve the rate.
MOST_ALONE = 0.2

_LEFT = [left_behind.AT_ONCE, left_behind.BY_THE_NEXT_CLAIM, left_behind.BY_A_NEW_CONNECTION]


def _assert_half(database: Database, took: Took, *, by_lease: bool, kind: str = "") -> None:
    assert took.calls <= 2 * took.commands, kind
    assert took.turns <= 2 * took.commands, kind
    assert took.leases <= (2 if by_lease else MOST_ALONE) * took.commands, kind
    assert innocent_and_charged(database) == [], kind


def _other_lock(database: Database) -> AbstractContextManager[Any]:
    """Hold the lock that the fault with a lock_timeout waits for."""
    connection = database.connect(user=OWNER)
    connection.execute("SET lock_timeout = 0")
    connection.execute("SELECT pg_advisory_lock(77)")
    return connection


#: The ways of applying a SQL target, by workers or by CALL.
_BY: dict[str, Callable[[Database], AbstractContextManager[Any]]] = {
    "inturn apply": lambda database: shop.at_work(database, Applier(), workers=rounds.WORKERS),
    "CALL": rounds.called,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", kinds_here(IN_SQL))
def test_p5_healthy_commands_take_no_more_under_call(database: Database, kind: str) -> None:
    bad_company.prepare(database, IN_SQL[kind], target="sql")
    rounds.watch(database)
    rounds.shorten_leases(database)
    with _other_lock(database), rounds.called(database):
        took = rounds.run(database)
    _assert_half(database, took, by_lease=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", kinds_here(IN_SQL))
def test_p5_healthy_commands_take_no_more_beside_a_sql_target(database: Database, kind: str) -> None:
    bad_company.prepare(database, IN_SQL[kind], target="sql")
    rounds.watch(database)
    rounds.shorten_leases(database)
    with _other_lock(database), _BY["inturn apply"](database):
        took = rounds.run(database)
    _assert_half(database, took, by_lease=False)


@pytest.mark.slow
@pytest.mark.parametrize("by", _BY)
def test_p5_healthy_commands_take_no_more_beside_a_sql_target_that_leaves_something(
    database: Database, by: str
) -> None:
    """In its session, one kind after the other; none of them is a failure."""
    bad_company.prepare(database, Fault("", sql="EXECUTE (SELECT statement FROM bad.leaves);"), target="sql")
    database.execute("CREATE TABLE bad.leaves AS SELECT 'SELECT' AS statement")
    rounds.watch(database)
    with _BY[by](database):
        for kind, statement in left_behind.IN_SQL.items():
            database.execute("UPDATE bad.leaves SET statement = %s", [statement.replace("PERFORM", "SELECT")])
            _assert_half(database, rounds.run(database), by_lease=False, kind=kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", kinds_here(IN_PYTHON))
def test_p5_healthy_commands_take_no_more_beside_a_handler(database: Database, kind: str) -> None:
    fault = IN_PYTHON[kind]
    bad_company.prepare(database, fault, target="python")
    rounds.watch(database)
    rounds.shorten_leases(database)
    handlers = bad_company.handlers(fault)
    with _other_lock(database), shop.at_work(database, handlers, workers=rounds.WORKERS):
        took = rounds.run(database)
    _assert_half(database, took, by_lease=False)


@pytest.mark.slow
@pytest.mark.parametrize("kinds", _LEFT, ids=["at once", "by the next claim", "by a new connection"])
def test_p5_healthy_commands_take_no_more_beside_a_handler_that_leaves_something(
    database: Database, kinds: Mapping[str, Callable[[psycopg.Connection[Any]], object]]
) -> None:
    """In its session, one kind after the other; none of them is a failure."""
    leaves: list[Callable[[psycopg.Connection[Any]], object]] = [lambda _: None]
    fault = Fault("", python=lambda connection, _: leaves[-1](connection))
    bad_company.prepare(database, fault, target="python")
    rounds.watch(database)
    with shop.at_work(database, bad_company.handlers(fault), workers=rounds.WORKERS):
        for kind, leave in kinds.items():
            leaves.append(leave)
            _assert_half(database, rounds.run(database), by_lease=False, kind=kind)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("kind", TOO_LONG_IN_PYTHON)
def test_p5_healthy_commands_take_no_more_beside_a_handler_that_takes_too_long(
    database: Database, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inturn.applier.inside.watchdog.GIVE_UP_SECONDS", 0.3)
    over = threading.Event()

    def take_long(connection: psycopg.Connection[Any], _: object) -> None:
        if kind == "a statement":
            connection.execute("SELECT pg_sleep(60)")
        while not over.wait(0.03):
            if kind == "many statements":
                connection.execute("SELECT")

    fault = Fault("", python=take_long)
    bad_company.prepare(database, fault, target="python")
    database.execute("SELECT inturn.set_topic('bad', timeout => '1500 ms')")
    rounds.watch(database)
    try:
        with shop.at_work(database, bad_company.handlers(fault), workers=rounds.WORKERS):
            took = rounds.run(database)
            over.set()
    finally:
        over.set()
    _assert_half(database, took, by_lease=False)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("kind", TOO_LONG_IN_SQL)
def test_p5_healthy_commands_take_no_more_beside_a_sql_target_that_takes_too_long(
    database: Database, kind: str
) -> None:
    bad_company.prepare(database, Fault("", sql="PERFORM pg_sleep(60);"), target="sql")
    database.execute("SELECT inturn.set_topic('bad', timeout => '1500 ms')")
    rounds.watch(database)
    with ExitStack() as stack:
        if TOO_LONG_IN_SQL[kind]:
            stack.enter_context(rounds.called(database, "SET statement_timeout = '3 s'"))
        else:
            stack.enter_context(shop.at_work(database, Applier(), workers=rounds.WORKERS))
        took = rounds.run(database)
    _assert_half(database, took, by_lease=False)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "kind"),
    [
        *(
            pytest.param(way, kind, marks=[] if tried else [pytest.mark.rest])
            for way, kind, tried in bad_outside.ways_and_kinds(1)
        ),
        *(("http", kind) for kind in bad_outside.SERVICE),
        *(("lease client", kind) for kind in bad_outside.LEASE_CLIENT),
    ],
)
def test_p5_healthy_commands_take_no_more_outside(database: Database, way: str, kind: str) -> None:
    faults = {
        "plain": bad_outside.PLAIN,
        "coroutine": bad_outside.COROUTINE,
        "http": bad_outside.SERVICE,
        "lease client": bad_outside.LEASE_CLIENT,
    }
    fault, seen = faults[way][kind], bad_outside.Seen()
    with B(bad_outside.service(fault, seen)) as b:
        target = f"http://127.0.0.1:{b.port}/" if way == "http" else "python"
        # What a client does not report is found out when its lease is over.
        lease = "1500 ms" if way == "lease client" else "10 minutes"
        bad_outside.prepare(database, fault, target, lease=lease)
        rounds.watch(database)
        with _at_work(database, way, fault, seen):
            took = rounds.run(database, keys=rounds.FEW_KEYS)
    everything = took.commands * (rounds.ROUNDS + rounds.NEW) // rounds.ROUNDS
    everything += bad_company.HEALTHY + bad_company.OTHERS
    assert sum(seen.calls.values()) <= 2 * everything
    _assert_half(database, took, by_lease=True)


def _at_work(
    database: Database, way: str, fault: bad_outside.Fault, seen: bad_outside.Seen
) -> AbstractContextManager[Any]:
    if way == "lease client":
        return rounds.beside(
            lambda over: bad_outside.work_by_lease(database.applier_dsn, fault, seen, over), rounds.WORKERS
        )
    handlers = {"plain": bad_outside.plain, "coroutine": bad_outside.coroutine}
    return shop.at_work(database, handlers[way](fault, seen) if way in handlers else Applier())


@pytest.mark.slow
def test_p5_without_its_guard_others_are_taken_alone_for_a_cancelled_command(database: Database) -> None:
    """A cancel that is not charged where it is met fails the batch, and all of its keys are suspected."""
    bad_company.prepare(database, IN_SQL["its own cancel"], target="sql")
    replace_in(database, "_apply_key", ("query_canceled OR ", ""))
    rounds.watch(database)
    with shop.at_work(database, Applier(), workers=rounds.WORKERS):
        took = rounds.run(database)
    assert took.leases > MOST_ALONE * took.commands
