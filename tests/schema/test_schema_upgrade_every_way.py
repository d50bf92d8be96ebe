"""Upgrading without a stop, whoever calls and whatever applies: all at once, as processes and sessions."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TypeAlias

import psycopg
import pytest
from support.b_server import B
from support.database import Database, until
from support.every_way import DAEMONS, HANDLERS, OUTSIDE, TARGETS, Appliers, Callers, open_topics
from support.next_release import NEXT, NextRelease
from support.process import InturnProcess, inturn_apply, run_inturn

from inturn.schema.version import HEAD

#: For processes at work on a busy machine.
PATIENCE = 120.0
pytestmark = pytest.mark.timeout(900)
_NOW = "SELECT clock_timestamp()"
_END_LEASES = """
    UPDATE inturn.key_mark SET lease_until = now() WHERE lease_until > now();
    UPDATE inturn.ticket SET ready_at = now() WHERE marked;
    DELETE FROM inturn.saved_pass;
"""
#: A topic, a key, and a number.
Effect: TypeAlias = tuple[str, str, int]


@pytest.fixture
def service(database: Database) -> Iterator[B]:
    """The service that topic http posts to; the topics are there."""
    with B() as service:
        open_topics(database, service.url)
        yield service


@contextmanager
def _daemons(database: Database, effects: Path) -> Iterator[dict[str, InturnProcess]]:
    """Run a process of `inturn apply` for each topic that has one."""
    with ExitStack() as stack:
        yield {
            topic: stack.enter_context(
                inturn_apply(
                    database.dsn,
                    *("--topic", topic),
                    app="support.every_way:applier" if topic in HANDLERS else None,
                    EFFECTS=str(effects),
                )
            )
            for topic in DAEMONS
        }


def _wait_for_turns(database: Database) -> None:
    """Wait until each topic has had a turn that began from now on."""
    since = database.value(_NOW)
    query = "SELECT FROM inturn.turn WHERE topic = %s AND started_at > %s LIMIT 1"
    for topic in TARGETS:
        until(partial(database.execute, query, [topic, since]), f"{topic} at work", PATIENCE)


def _wait_for_looks(database: Database, daemons: dict[str, InturnProcess]) -> None:
    """Wait until each process has looked at the revision: right after it has announced itself."""
    since = database.value(_NOW)
    query = "SELECT FROM inturn.applier WHERE pid = %s AND seen_at > %s LIMIT 1"
    for topic, each in daemons.items():
        until(partial(database.execute, query, [each.pid, since]), f"{topic} looked", PATIENCE)


def _wait_for_callers(callers: Callers, names: Collection[str]) -> None:
    """Wait until each has appended from now on, to each topic."""
    then = dict(callers.counted)

    def went_on() -> bool:
        failed = [each for each in callers.running.values() if each.done() and each.exception()]
        assert failed == []
        return all(callers.counted[name] > then[name] + len(TARGETS) for name in names)

    until(went_on, "callers go on", PATIENCE)


def _effects(database: Database, service: B, noted: Path, *leased: Effect) -> list[Effect]:
    """Return what took effect, each key's in order."""
    within = database.execute("SELECT topic, key, seq FROM app.effect ORDER BY id")
    outside = [(topic, key, int(seq)) for topic, key, seq in map(str.split, noted.read_text().splitlines())]
    posted = [("http", post.key, post.seq) for post in list(service.log)]
    return sorted([*within, *outside, *posted, *leased], key=itemgetter(0, 1))


def _assert_nothing_lost(database: Database) -> list[Effect]:
    """Return every command that callers were told of: they are all there is."""
    everything = 'SELECT topic, key, seq FROM {} ORDER BY topic COLLATE "C", key COLLATE "C", seq'
    sales = database.execute(everything.format("app.sale"))
    assert sales == database.execute(everything.format("inturn.command_log"))
    for topic in TARGETS:
        assert database.execute("SELECT * FROM inturn.verify(%s)", [topic]) == [], topic
    return sales


def _drained(database: Database) -> bool:
    return not database.value("SELECT EXISTS (SELECT FROM inturn.ticket)")


def test_nobody_stops_at_a_compatible_upgrade_whoever_calls_and_whatever_applies(
    database: Database, service: B, tmp_path: Path
) -> None:
    """Nor notices it: nothing fails, nothing is lost, and nothing is out of turn."""
    release, noted = NextRelease(tmp_path, compatible=True), tmp_path / "effects"
    callers, appliers = Callers(database), Appliers(database)
    with _daemons(database, noted) as daemons, appliers.at_work():
        with callers.at_work():
            _wait_for_turns(database)
            assert release.upgrade(database.dsn) == (HEAD, NEXT)
            _wait_for_looks(database, daemons)
            _wait_for_turns(database)
            _wait_for_callers(callers, callers.counted)
            # What is not upgraded yet may look, and be started anew, too: with `inturn upgrade` before.
            assert run_inturn(database.dsn, "status")[0] == 0
            already = f"schema inturn of database {database.name} is at revision {NEXT} already\n"
            assert run_inturn(database.dsn, "upgrade") == (0, already, "")
        until(lambda: _drained(database), "drained", PATIENCE)
        for each in daemons.values():
            each.send(signal.SIGTERM)
        assert [each.exit_code(PATIENCE) for each in daemons.values()] == [0] * len(daemons)
    for name, thread in (callers.running | appliers.running).items():
        assert thread.exception() is None, name
    assert _effects(database, service, noted, *appliers.leased) == _assert_nothing_lost(database)
    assert database.execute("SELECT DISTINCT outcome FROM inturn.turn") == [("applied",)]


def test_every_applier_stops_at_an_upgrade_that_is_not_compatible_and_callers_go_on(
    database: Database, service: B, tmp_path: Path
) -> None:
    """No command is charged; what was in hand is repeated once appliers fit again. A wait lasts till then."""
    release = NextRelease(tmp_path, renamed=["finish", "_end_alone", "_record_progress", "advance"])
    noted = tmp_path / "effects"
    callers, appliers, later = Callers(database), Appliers(database), Appliers(database)
    with ExitStack() as calling:
        calling.enter_context(callers.at_work())
        with _daemons(database, noted) as daemons, appliers.at_work():
            _wait_for_turns(database)
            release.upgrade(database.dsn)
            for topic, each in daemons.items():
                assert each.exit_code(PATIENCE) == 5, topic
                assert f"revision {NEXT}, newer than the {HEAD}" in each.err, topic
                assert "Traceback" not in each.err, topic
            for name, thread in appliers.running.items():
                assert isinstance(thread.exception(PATIENCE), psycopg.errors.UndefinedFunction), name
        _wait_for_callers(callers, callers.counted.keys() - {"by_waiting"})
        assert database.execute("SELECT DISTINCT outcome FROM inturn.turn") == [("applied",)]
        release.downgrade(database.dsn, revision=HEAD)
        database.execute(_END_LEASES)
        with _daemons(database, noted), later.at_work():
            _wait_for_callers(callers, callers.counted)
            calling.close()
            until(lambda: _drained(database), "drained", PATIENCE)
    for name, thread in (callers.running | later.running).items():
        assert thread.exception() is None, name
    # At least once outside of the database, and exactly once in it.
    found = _effects(database, service, noted, *appliers.leased, *later.leased)
    assert list(dict.fromkeys(found)) == _assert_nothing_lost(database)
    repeated = [effect for effect, times in Counter(found).items() if times > 1]
    assert {topic for topic, _, _ in repeated} <= OUTSIDE
