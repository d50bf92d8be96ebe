"""Company: how fast healthy keys are applied beside one that fails over and over, by each kind of failure."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psycopg
from support import bad_company, bad_outside, shop
from support.b_server import B
from support.database import Database, until

from bench.ground import Ground
from bench.section import Section, ratio
from inturn.applier import Applier

_WORKERS = 2
#: About so long an undisturbed run takes, in seconds; its first is for finding out how many keys that are.
_SECONDS, _FIRST_KEYS = 4.0, 400
#: How often the end of a run is looked for, by the interpreter in which handlers run too.
_LOOK_SECONDS = 0.05
#: The bad command is tried again after this, as often as the run lasts.
_BACKOFF = "100 ms"


@dataclass(frozen=True, slots=True)
class Way:
    """A way of applying.

    Attributes:
        healthy: nothing goes wrong.
        faults: what may go wrong there, by kind.
        prepare: makes the topics for a fault, with a command of the bad key in front.
        at_work: applies while the block runs.
    """

    name: str
    healthy: Any
    faults: Mapping[str, Any]
    prepare: Callable[[Database, Any], None]
    at_work: Callable[[Database, Any], Any]


def measure(ground: Ground) -> Section:
    section = Section(
        "Healthy keys beside one that fails over and over",
        ["way of applying", "kinds of failure", "median", "least", "by"],
        notes=[
            "Healthy keys' commands a second, to those of runs without a failure, just before and after.",
            "The healthy keys are of the bad key's topic and of another.",
            f"{_WORKERS} workers; the bad key is tried again after {_BACKOFF}, as long as the run lasts.",
        ],
    )
    for way in _WAYS:
        with ground.database() as empty:
            found = _ratios(ground, way, empty)
        least = min(found, key=lambda kind: found[kind])
        median = statistics.median(found.values())
        section.rows.append([way.name, str(len(found)), ratio(median, 1), ratio(found[least], 1), least])
    return section


def _ratios(ground: Ground, way: Way, empty: Database) -> dict[str, float]:
    """Return by kind of failure what the healthy keys have of their rate."""
    found = {}
    keys = _FIRST_KEYS
    if not ground.quick:
        keys = max(int(_run(ground, way, empty, way.healthy, keys) * _SECONDS), keys)
    before = _run(ground, way, empty, way.healthy, keys)
    for kind, fault in way.faults.items():
        beside = _run(ground, way, empty, fault, keys)
        after = _run(ground, way, empty, way.healthy, keys)
        found[kind] = beside / statistics.mean([before, after])
        ground.say(f"{way.name}, {kind}: {beside:,.0f}/s, ratio {found[kind]:.2f}")
        before = after
    return found


def _run(ground: Ground, way: Way, empty: Database, fault: Any, keys: int) -> float:
    """Return how many commands a second the healthy keys have applied, in a copy of the empty database."""
    with ground.copy(empty) as database:
        way.prepare(database, fault)
        database.execute(
            "SELECT inturn.set_topic(name, max_attempts => 10000, backoff_base => %s, backoff_cap => %s)"
            " FROM inturn.topic WHERE name IN ('bad', 'other')",
            [_BACKOFF, _BACKOFF],
        )
        for topic, share in (("bad", 3), ("other", 1)):
            database.execute(
                "SELECT inturn.append_many(%s, array_agg('h' || n), array_agg('insert'::text))"
                " FROM generate_series(1, %s) n",
                [topic, keys * share // 4],
            )
        database.execute("VACUUM (ANALYZE)")
        left = "SELECT count(*) FROM inturn.ticket WHERE key <> 'bad'"
        count = database.value(left)
        with way.at_work(database, fault):
            # From when it is at work: a start takes as long with and without.
            until(lambda: database.value(left) < count, "the first key")
            started_at, there = time.monotonic(), database.value(left)
            while database.value(left):
                time.sleep(_LOOK_SECONDS)
            return float(there / (time.monotonic() - started_at))


def _python(database: Database, fault: bad_company.Fault) -> None:
    bad_company.prepare(database, fault, target="python")


def _sql(database: Database, fault: bad_company.Fault) -> None:
    bad_company.prepare(database, fault, target="sql")


def _outside(database: Database, fault: bad_outside.Fault) -> None:
    bad_outside.prepare(database, fault)


def _lease(database: Database, fault: bad_outside.Fault) -> None:
    bad_outside.prepare(database, fault, lease="4 seconds")


@contextmanager
def _by_python(database: Database, fault: bad_company.Fault) -> Iterator[None]:
    with _other_lock(database), shop.at_work(database, bad_company.handlers(fault), workers=_WORKERS):
        yield


@contextmanager
def _by_daemon(database: Database, _: bad_company.Fault) -> Iterator[None]:
    with _other_lock(database), shop.at_work(database, Applier(), workers=_WORKERS):
        yield


@contextmanager
def _by_call(database: Database, _: bad_company.Fault) -> Iterator[None]:
    """Call again and again, whatever ended the call before."""

    def call(over: threading.Event) -> None:
        while not over.is_set():
            with (
                suppress(psycopg.DatabaseError),
                psycopg.connect(database.dsn, autocommit=True) as session,
            ):
                while not over.is_set():
                    session.execute("CALL inturn.apply()")

    with _other_lock(database), _threads(call):
        yield


@contextmanager
def _by_lease(database: Database, fault: bad_outside.Fault) -> Iterator[None]:
    seen = bad_outside.Seen()
    with _threads(lambda over: bad_outside.work_by_lease(database.dsn, fault, seen, over)):
        yield


def _by_handlers(
    handlers: Callable[[bad_outside.Fault, bad_outside.Seen], Applier],
) -> Callable[[Database, bad_outside.Fault], Any]:
    return lambda database, fault: shop.at_work(database, handlers(fault, bad_outside.Seen()))


@contextmanager
def _by_http(database: Database, fault: bad_outside.Fault) -> Iterator[None]:
    with B(bad_outside.service(fault, bad_outside.Seen())) as b:
        database.execute(
            "SELECT inturn.set_topic(name, target => %s) FROM inturn.topic WHERE name IN ('bad', 'other')",
            [f"http://127.0.0.1:{b.port}/"],
        )
        with shop.at_work(database, Applier()):
            yield


@contextmanager
def _threads(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Have so many threads work as there are workers, until the block ends."""
    over = threading.Event()
    threads = [threading.Thread(target=work, args=(over,)) for _ in range(_WORKERS)]
    with ExitStack() as stack:
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
        stack.callback(over.set)
        yield


@contextmanager
def _other_lock(database: Database) -> Iterator[None]:
    """Hold the lock that the fault with a lock_timeout waits for."""
    with database.connect() as connection:
        connection.execute("SELECT pg_advisory_lock(77)")
        yield


def _kinds(faults: Mapping[str, Any]) -> dict[str, Any]:
    """Return those that there are with the server and the Python of the run."""
    return {kind: faults[kind] for kind in bad_company.kinds_here(faults)}


_INSIDE, _BEYOND = bad_company.Fault("", sql="NULL;"), bad_outside.Fault("")
_WAYS = (
    Way("`CALL inturn.apply()`", _INSIDE, _kinds(bad_company.IN_SQL), _sql, _by_call),
    Way("SQL target in `inturn apply`", _INSIDE, _kinds(bad_company.IN_SQL), _sql, _by_daemon),
    Way("Python handler", _INSIDE, _kinds(bad_company.IN_PYTHON), _python, _by_python),
    Way(
        "Python outside, plain", _BEYOND, _kinds(bad_outside.PLAIN), _outside, _by_handlers(bad_outside.plain)
    ),
    Way(
        "Python outside, `async def`",
        _BEYOND,
        _kinds(bad_outside.COROUTINE),
        _outside,
        _by_handlers(bad_outside.coroutine),
    ),
    Way("HTTP", _BEYOND, bad_outside.SERVICE, _outside, _by_http),
    Way("lease client", _BEYOND, bad_outside.LEASE_CLIENT, _lease, _by_lease),
)
