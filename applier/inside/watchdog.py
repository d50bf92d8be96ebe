"""Watchdog: does something about handlers that take longer than their topic's timeout."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Generic, Protocol, TypeVar

import psycopg

from inturn.applier import calls
from inturn.applier.failure import on_one_line
from inturn.applier.inside.blame import Blame
from inturn.applier.inside.hand import Hand, Overdue
from inturn.applier.process.failure_log import FAILURES
from inturn.applier.stop import Stop
from inturn.schema.errors import InturnError

log = logging.getLogger("inturn.applier")

_LOOK_SECONDS = 0.2
#: What is at work in the database is cancelled when the time is over. A handler that does not come back from
#: that within this many more seconds is given up.
GIVE_UP_SECONDS = 2.0
#: So the other keys go on within five seconds of the deadline, even if the session takes all the time to end.
_TERMINATE_MILLISECONDS = 2000


class Watched(Protocol):
    """A worker, as the watchdog sees it."""

    hand: Hand

    @property
    def backend(self) -> tuple[int | None, str | None]: ...

    def cancel(self) -> None: ...

    def hang_up(self) -> None: ...

    def give_up(self) -> None: ...


_W = TypeVar("_W", bound=Watched)


class Watchdog(Generic[_W]):
    """The watchdog of one process. A thread runs `run`."""

    def __init__(
        self,
        connect: Callable[[], psycopg.Connection[Any]],
        workers: Callable[[], Sequence[_W]],
        replace: Callable[[_W, bool], None],
        *,
        schema: str,
        stop: Stop,
    ) -> None:
        """Make one.

        Args:
            connect: gives a connection in autocommit.
            workers: gives those that are at work.
            replace: starts another worker in the place of one that was given up; told whether that has to
                be careful, as any of several keys may have been at fault.
        """
        self._connect = connect
        self._workers = workers
        self._replace = replace
        self._schema = schema
        self._stop = stop

    def run(self) -> None:
        """Watch until a stop, and then until nobody is at work: it waits for what is in hand."""
        while not self._stop.requested or self._workers():
            time.sleep(_LOOK_SECONDS)
            _go_on(FAILURES.say)
            for worker in self._workers():
                _go_on(functools.partial(self._look, worker))

    def _look(self, worker: _W) -> None:
        late = worker.hand.overdue(GIVE_UP_SECONDS)
        if late is not None:
            self._give_up(worker, late)
        else:
            worker.hand.interrupt(worker.cancel)

    def _give_up(self, worker: _W, late: Overdue) -> None:
        """End the session of a worker whose handler does not return, charge its command, and replace it."""
        try:
            worker.give_up()
            self._end_session(worker, late)
        finally:  # whatever went wrong there, the other keys need a worker
            self._replace(worker, not late.is_alone)

    def _end_session(self, worker: Watched, late: Overdue) -> None:
        order = late.order
        extra = {"topic": order.topic, "key": order.key, "seq": order.seq, "attempt": order.attempt}
        # Where keys shared its transaction, the next worker finds it out: it takes them alone.
        blame = Blame(self._schema, order, late.timeout) if late.is_alone else None
        if blame:
            with _warned("note", extra), self._connect() as connection:
                blame.note(connection)
        worker.hang_up()
        with _warned("charge", extra), self._connect() as connection:
            # Its tickets are free once its session is over.
            calls.session.terminate(*worker.backend, _TERMINATE_MILLISECONDS).on(connection)
            if blame:
                blame.charge(connection)
        log.warning("a handler that does not return was abandoned", extra=extra)


def _go_on(step: Callable[[], None]) -> None:
    """Take a step, whatever it raises: the watchdog has to go on for the others, also where the log fails."""
    try:
        step()
    except Exception:
        with suppress(Exception):
            log.exception("could not look after a worker")


@contextmanager
def _warned(what: str, extra: dict[str, Any]) -> Iterator[None]:
    """Go on where the database refuses: the session is ended, and the worker replaced, all the same."""
    try:
        yield
    except (psycopg.Error, InturnError) as error:
        log.warning("could not %s it: %s", what, on_one_line(error), extra=extra)
