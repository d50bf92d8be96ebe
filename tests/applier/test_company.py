"""A key with much to do does not hold up the commit of others that a worker took up with it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from support import shop
from support.database import Database
from support.roles import APPLIER

from inturn.applier import Applier, Batch, Command, pacing
from inturn.applier.inside import python_target
from inturn.applier.inside.alone import is_cut
from inturn.applier.inside.batch import OLDEST
from inturn.applier.inside.python import handler_calls
from inturn.applier.inside.python_target import PythonTarget
from inturn.applier.inside.session import session_of
from inturn.applier.inside.visits import Visits
from inturn.applier.metrics.tallies import Tallies
from inturn.applier.process.totals import Totals
from inturn.applier.stop import Bell, Stop


class _Clock:
    """By which every command takes a millisecond, however long it takes."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def target(database: Database, monkeypatch: pytest.MonkeyPatch) -> PythonTarget:
    shop.open_shop(database)
    clock, applier = _Clock(), Applier()
    for module in (python_target, handler_calls):
        monkeypatch.setattr(module, "time", clock)

    @applier.handler(shop.TOPIC)
    def handle(connection: psycopg.Connection[Any], command: Command) -> None:
        shop.write_witness(connection, command)
        clock.now += 0.001

    return PythonTarget(shop.TOPIC, applier, Stop(), "inturn", "test")


def _worker(database: Database) -> psycopg.Connection[Any]:
    connection = database.connect(user=APPLIER)
    connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    return connection


def _keys(database: Database) -> list[str]:
    """Return the keys in the order of their effects, each once for those that follow each other."""
    rows = database.execute(
        "SELECT key FROM (SELECT id, key, lag(key) OVER (ORDER BY id) AS last FROM app.witness) w"
        " WHERE key IS DISTINCT FROM last ORDER BY id"
    )
    return [key for (key,) in rows]


def test_a_deep_key_is_left_for_a_transaction_of_its_own(database: Database, target: PythonTarget) -> None:
    shop.append(database, "deep", *["insert"] * 100)
    for key in ("a", "b"):
        shop.append(database, key, "insert")
    before = database.execute("SELECT c::text, ready_at FROM inturn.key_cursor c WHERE key = 'deep'")
    batch = target.apply_batch(_worker(database), OLDEST, 50)
    assert (batch.keys, batch.commands, batch.left) == (2, 2, 1)
    assert _keys(database) == ["a", "b"]
    assert database.execute("SELECT c::text, ready_at FROM inturn.key_cursor c WHERE key = 'deep'") == before
    assert batch.hand == before[0][1], "the next claim would begin behind it"
    batch = target.apply_batch(_worker(database), batch.hand, 1)
    assert (batch.keys, batch.commands, batch.left) == (1, 100, 0)


def test_keys_that_fit_into_the_time_of_a_batch_share_it(database: Database, target: PythonTarget) -> None:
    """Ten commands of a millisecond each, whoever has them."""
    shop.append(database, "two", "insert", "insert")
    for number in range(7):
        shop.append(database, f"k{number}", "insert")
    batch = target.apply_batch(_worker(database), OLDEST, 50)
    assert (batch.keys, batch.commands, batch.left) == (8, 9, 0)


def test_keys_with_few_commands_share_it_however_slow_the_machine_is(
    database: Database, target: PythonTarget
) -> None:
    """A commit each would make a busy machine busier."""
    for number in range(20):
        shop.append(database, f"k{number}", *["insert"] * 10)
    batch = target.apply_batch(_worker(database), OLDEST, 50)
    assert (batch.keys, batch.commands, batch.left) == (20, 200, 0)


def test_of_deep_keys_alone_each_has_a_transaction(database: Database, target: PythonTarget) -> None:
    for key in ("a", "b", "c"):
        shop.append(database, key, *["insert"] * 20)
    batch = target.apply_batch(_worker(database), OLDEST, 50)
    assert (batch.keys, batch.commands, batch.left) == (1, 20, 2)


def test_a_worker_takes_what_it_left_before_anything_else(
    database: Database, target: PythonTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise others that are appended meanwhile would have it left again and again."""
    shop.append(database, "deep", *["insert"] * 100)
    shop.append(database, "a", "insert")
    widths: list[int] = []
    apply_batch = PythonTarget.apply_batch

    def recorded(self: PythonTarget, connection: psycopg.Connection[Any], since: Any, width: int) -> Batch:
        widths.append(width)
        batch = apply_batch(self, connection, since, width)
        if len(widths) == 1:
            shop.append(database, "b", "insert")
        return batch

    monkeypatch.setattr(PythonTarget, "apply_batch", recorded)
    monkeypatch.setattr(pacing, "visit_seconds", lambda _: 60.0)
    visits = _visits(target)
    visits._seconds_per_key[shop.TOPIC] = 0.0
    assert visits.visit(_worker(database), target, OLDEST).emptied
    assert _keys(database) == ["a", "deep", "b"]
    assert widths[:2] == [50, 1]


def _visits(target: PythonTarget) -> Visits:
    return Visits(
        max_keys=50,
        careful=lambda _: 0,
        stop=target.stop,
        bell=Bell(1),
        sleep=SimpleNamespace(),  # type: ignore[arg-type]
        totals=Totals(),
        tallies=Tallies(),
        found=lambda: None,
    )


def _finding(monkeypatch: pytest.MonkeyPatch, alone: Batch, *batches: Batch) -> list[Batch]:
    """Have batches find a suspect, and then these; alone: what becomes of it. Return those to come."""
    left = [Batch(keys=2, redo=True, lost=True, hand="2026-01-01"), *batches, Batch()]
    monkeypatch.setattr(PythonTarget, "apply_batch", lambda *_: left.pop(0))
    monkeypatch.setattr(PythonTarget, "apply_alone", lambda *_: alone)
    return left


def test_a_suspect_that_was_put_off_does_not_say_how_long_a_key_takes(
    database: Database, target: PythonTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took no time: fifty slow keys would share a transaction from then on."""
    left, visits = _finding(monkeypatch, Batch(keys=1)), _visits(target)
    assert visits.visit(_worker(database), target, OLDEST).found
    assert (left, visits._seconds_per_key) == ([], {})


@pytest.mark.parametrize("error", [psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable])
def test_a_connection_that_is_gone_with_a_batch_was_not_only_cut_off(
    database: Database, target: PythonTarget, monkeypatch: pytest.MonkeyPatch, error: type[psycopg.Error]
) -> None:
    """A worker whose statement was cut off has no suspect: the same keys would share a batch for ever."""

    def gone(_: PythonTarget, connection: psycopg.Connection[Any], *_rest: object) -> Batch:
        connection.close()
        raise error("cut off")

    monkeypatch.setattr(PythonTarget, "apply_batch", gone)
    with pytest.raises(psycopg.OperationalError, match="the connection is gone: cut off") as raised:
        _visits(target).visit(_worker(database), target, OLDEST)
    assert not is_cut(raised.value)


def test_a_worker_that_is_stopped_before_its_first_handler_is_not_careful_for_that(
    database: Database, target: PythonTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would not say its end: the next start would take the first keys of each topic alone for it."""

    def stopped(*_: object) -> Batch:
        target.stop.request()
        return Batch(keys=2)

    monkeypatch.setattr(PythonTarget, "apply_batch", stopped)
    visits = _visits(target)
    assert visits.visit(_worker(database), target, OLDEST).found
    assert not visits.is_careful(shop.TOPIC)


def test_a_suspect_that_somebody_else_took_meanwhile_ends_no_visit(
    database: Database, target: PythonTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy = Batch(keys=1, commands=1, target_seconds=0.001)
    left, visits = _finding(monkeypatch, Batch(), healthy), _visits(target)
    assert visits.visit(_worker(database), target, OLDEST).found
    assert left == []
    assert visits._seconds_per_key == {shop.TOPIC: 0.001}


def test_on_a_busy_machine_a_key_does_not_take_what_it_waits_for_a_processor(
    database: Database, target: PythonTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each worker of a crowd would make a commit a key, which makes the machine busier."""
    visits = _visits(target)
    batches = [Batch(keys=1, commands=1, target_seconds=0.01, slowness=10.0), Batch()]
    monkeypatch.setattr(PythonTarget, "apply_batch", lambda *_: batches.pop(0))
    assert visits.visit(_worker(database), target, OLDEST).found
    assert visits._seconds_per_key == {shop.TOPIC: pytest.approx(0.001)}


def test_how_busy_the_machine_is_shows_in_how_long_transactions_take_to_begin(
    database: Database, target: PythonTarget
) -> None:
    shop.append(database, "a", "insert")
    connection = _worker(database)
    trips = session_of(connection).trips
    for seconds in (1e-9, 60.0, 60.0, 60.0, 60.0):
        trips.add(seconds)
    assert target.apply_batch(connection, OLDEST, 50).slowness == pacing.MOST_SLOWNESS
    assert trips._latest[-1] < 60.0


def test_where_no_key_of_a_batch_is_begun_in_time_one_is_taken_alone(
    database: Database, target: PythonTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where everything takes long, each batch would be late, and nothing would ever be applied."""
    late = _Clock()
    late.now = 1e12
    monkeypatch.setattr(handler_calls, "time", late)
    monkeypatch.setattr(pacing, "visit_seconds", lambda _: 10.0)
    for key in ("a", "b"):
        shop.append(database, key, "insert")
    assert _visits(target).visit(_worker(database), target, OLDEST).emptied
    assert _keys(database) == ["a", "b"]
