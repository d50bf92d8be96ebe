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
from support.roles import OWNER

from bench.ground import Ground
from bench.section import Section, ratio
from inturn.applier import Applier

_WORKERS = 2
#: So many healthy keys there are, in both topics.
_KEYS = 100
#: About so long an undisturbed run takes, in seconds; the first ones find out how deep the keys are for that.
_SECONDS, _FIRST_COMMANDS = 4.0, 5
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
            f"{_KEYS} healthy keys, a command a turn: so the bad key's turn comes whenever its wait is over.",
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
    commands = _commands(ground, way, empty)
    before = _run(ground, way, empty, way.healthy, commands)
    for kind, fault in way.faults.items():
        beside = _run(ground, way, empty, fault, commands)
        after = _run(ground, way, empty, way.healthy, commands)
        found[kind] = beside / statistics.mean([before, after])
        ground.say(f"{way.name}, {kind}: {beside:,.0f}/s, ratio {found[kind]:.2f}")
        before = after
    return found


def _commands(ground: Ground, way: Way, empty: Database) -> int:
    """Return how deep each key is for an undisturbed run of some seconds, most of which is no start."""
    commands = _FIRST_COMMANDS
    if not ground.quick:
        # A run that is much shorter says too little of a rate.
        for _ in range(3):
            longer = int(_run(ground, way, empty, way.healthy, commands) * _SECONDS) // _KEYS
            if longer < commands * 1.5:
                break
            commands = longer
    return commands


def _run(ground: Ground, way: Way, empty: Database, fault: Any, commands: int) -> float:
    """Return how many commands a second the healthy keys have applied, in a copy of the empty database."""
    with ground.copy(empty) as database:
        way.prepare(database, fault)
        database.execute(
            "SELECT inturn.set_topic(name, max_attempts => 10000, backoff_base => %s, backoff_cap => %s,"
            " batch_commands => 1) FROM inturn.topic WHERE name IN ('bad', 'other')",
            [_BACKOFF, _BACKOFF],
        )
        for topic, share in (("bad", 3), ("other", 1)):
            database.execute(
                "SELECT inturn.append_many(%s, array_agg('h' || k), array_agg('insert'::text))"
                " FROM generate_series(1, %s) c, generate_series(1, %s) k",
                [topic, commands, _KEYS * share // 4],
            )
        database.execute("VACUUM (ANALYZE)")
        done = "SELECT sum(applied_seq)::bigint FROM inturn.key_cursor WHERE key <> 'bad'"
        wanted = database.value("SELECT count(*) FROM inturn.command_log WHERE key <> 'bad'")
        with way.at_work(database, fault):
            # From when it is at work: a start takes as long with and without.
            until(lambda: database.value(done) > 0, "the first key")
            started_at, begun = time.monotonic(), database.value(done)
            while database.value(done) < wanted:
                time.sleep(_LOOK_SECONDS)
            return float((wanted - begun) / (time.monotonic() - started_at))


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
                session.execute("SET inturn.careful_keys = 20")  # the default, which servers of tests change
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
        for topic in ("bad", "other"):
            database.execute(
                "SELECT inturn.set_topic(%s, target => %s)", [topic, f"http://127.0.0.1:{b.port}/"]
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
    with database.connect(user=OWNER) as connection:
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
