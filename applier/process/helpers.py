"""Helpers: the threads of a process that look after its workers; and its last question."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import psycopg

from inturn.applier import calls
from inturn.applier.inside.watchdog import Watchdog
from inturn.applier.inside.worker import Worker
from inturn.applier.process.connections import Connections
from inturn.applier.process.crew import Crew
from inturn.applier.process.listener import Listener
from inturn.applier.process.threads import NoThread, start_thread
from inturn.applier.stop import Ringer, Stop
from inturn.schema.errors import InturnError


def start_helpers(
    connections: Connections,
    crew: Crew,
    replace: Callable[[Worker, bool], None],
    schema: str,
    stop: Stop,
    bell: Ringer | None,
) -> None:
    """Start them.

    Args:
        replace: as for Watchdog.
        bell: is rung when keys turn ready; None: nobody waits for that.

    Raises:
        NoThread: there is none for one of them.
    """
    watchdog = Watchdog(connections.connect, crew.watched, replace, schema=schema, stop=stop)
    start_thread(watchdog.run, "inturn-watchdog")
    connections.watch(stop)
    if bell is not None:
        listener = Listener(connections.connect, schema=schema, stop=stop, bell=bell)
        start_thread(listener.run, "inturn-listener")


def count_held(connections: Connections, schema: str, topics: list[str], seconds: float | None) -> int | None:
    """Return how many keys are held; None when the database could not tell, or not in so many seconds."""
    found: list[int] = []

    def count() -> None:
        with suppress(psycopg.Error, InturnError), connections.connect() as connection:
            found.append(calls.appliers.count_held(schema, topics).on(connection))

    if seconds is None:
        count()
    else:
        with suppress(NoThread):  # which may be why the process ends
            start_thread(count, "inturn-count").join(seconds)
    return found[0] if found else None
