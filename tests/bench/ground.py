"""The server of a run, and the databases that the measures make in it."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from support import partitioned
from support.database import Database, until
from support.server import Server

from bench import measures
from inturn.applier import Applier, Command, Fleet

_T = TypeVar("_T")

#: How many sessions append at once to fill a topic.
_FILLERS = 2


class Ground:
    """What every measure is given.

    Attributes:
        server: it runs, and belongs to this run alone.
        quick: whether only to show that everything works.
        plots: where to draw; None: nowhere.
    """

    def __init__(self, server: Server, *, quick: bool, plots: Path | None) -> None:
        self.server = server
        self.quick = quick
        self.plots = plots
        self._numbers = itertools.count(1)

    def size(self, full: _T, quick: _T) -> _T:
        """Choose the size of something."""
        return quick if self.quick else full

    @contextmanager
    def database(self, partitions: int = 1) -> Iterator[Database]:
        """Make a database with inturn and the application of measures.PREPARE; drop it in the end.

        Args:
            partitions: of the log and the history.
        """
        database = Database(self.server, f"bench_{next(self._numbers)}")
        try:
            if partitions > 1:
                partitioned.install(database, partitions)
            else:
                database.install()
            database.execute(measures.PREPARE)
            yield database
        finally:
            database.drop()

    @contextmanager
    def copy(self, original: Database) -> Iterator[Database]:
        """Make a copy of a database, and drop it in the end; closes what is connected to the original."""
        original.close()
        database = Database(self.server, f"bench_{next(self._numbers)}", template=original.name)
        try:
            yield database
        finally:
            database.drop()

    @staticmethod
    def say(text: str) -> None:
        """Tell who waits what has been found."""
        print(f"  {text}", file=sys.stderr, flush=True)


def fill(database: Database, topic: str, keys: int, deep: int, *, prefix: str = "k") -> None:
    """Append so many commands to each of so many keys, by two sessions at once; then collect statistics."""
    sessions = [database.session(autocommit=True) for _ in range(_FILLERS)]
    fillings = [
        session.begin(
            "SELECT count(inturn.append(%s, %s || k, 'insert', '{\"amount\": 1}'))"
            " FROM generate_series(1, %s::integer) c,"
            " generate_series(%s::integer, %s::integer, %s::integer) k",
            [topic, prefix, deep, number, keys, _FILLERS],
        )
        for number, session in enumerate(sessions, 1)
    ]
    appended = sum(filling.result()[0][0] for filling in fillings)
    assert appended == keys * deep, (appended, keys * deep)
    database.execute("VACUUM (ANALYZE)")


def row_writer(topics: Sequence[str]) -> Applier:
    """Return handlers that write a row a command."""
    applier = Applier()
    for topic in topics:

        @applier.handler(topic)
        def handle(connection: psycopg.Connection[Any], command: Command) -> None:
            connection.execute("INSERT INTO app.effect VALUES (%s, %s)", (command.key, command.seq))

    return applier


@contextmanager
def at_work(
    database: Database, applier: Applier | None, *, topics: Sequence[str] = (), workers: int = 1
) -> Iterator[Fleet]:
    """Run a fleet of this process while the block runs; enter it when every worker is connected.

    Raises:
        Exception: what ended a worker before its time.
    """
    fleet = Fleet(database.applier_dsn, applier, topics=topics, workers=workers)
    fleet.start()
    try:
        # One more listens.
        until(lambda: _connected(database) > workers, "the workers")
        yield fleet
    finally:
        outcome = fleet.end(10)
    if outcome.error is not None:
        raise outcome.error
    assert outcome.failures == 0, outcome


def _connected(database: Database) -> int:
    number: int = database.value(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'inturn apply'"
    )
    return number
