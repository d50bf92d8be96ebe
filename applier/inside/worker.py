"""Worker: applies on one connection, made again when it is lost."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import psycopg

from inturn.applier import pacing
from inturn.applier.failure import on_one_line
from inturn.applier.inside.alone import TurnLost, is_cut, is_lost
from inturn.applier.inside.batch import Target
from inturn.applier.inside.entry import Entry
from inturn.applier.inside.hand import Hand
from inturn.applier.inside.passes import Passes
from inturn.applier.inside.rounds import Rounds
from inturn.applier.inside.session import SessionChanged
from inturn.applier.inside.sleep import Sleep
from inturn.applier.inside.visits import Visits, careful_at_first
from inturn.applier.metrics.tallies import Tallies
from inturn.applier.process.half_open import hang_up
from inturn.applier.process.recovery import Recovery
from inturn.applier.process.totals import Totals, ended_by
from inturn.applier.stop import Bell, Stop
from inturn.schema.errors import InturnError
from inturn.schema.pooling import is_pooled
from inturn.schema.version import check_after

log = logging.getLogger("inturn.applier")


class Worker:
    """One connection's worth of applying. `run` is what a thread runs.

    Args:
        connect: gives a connection in autocommit with isolation level READ COMMITTED.
        choose: gives the topics to serve, in the order of visits; asked first, and again now and then: so a
            new topic needs no restart, and a schema that no longer fits ends the worker.
        schema: where inturn is installed.
        applier_id: its name, under which `choose` announces it; None: it does not say its end.
        max_keys: the most keys that share a transaction.
        drain: stop when nothing is ready, rather than wait for more.
        prune: when nothing is ready, remove what topics need not keep any more.
        careful: says how many of the first keys of a topic are taken alone.
        hand: what its targets hold their commands in.
        stop, bell, recovery, tallies: shared with the other workers of the process.
    """

    def __init__(
        self,
        connect: Callable[[], psycopg.Connection[Any]],
        choose: Callable[[psycopg.Connection[Any]], Sequence[Target]],
        *,
        schema: str,
        applier_id: str | None = None,
        max_keys: int,
        drain: bool,
        stop: Stop,
        bell: Bell,
        hand: Hand | None = None,
        recovery: Recovery | None = None,
        tallies: Tallies | None = None,
        prune: bool = False,
        careful: Callable[[str], float] = careful_at_first,
    ) -> None:
        self._connect, self._choose = connect, choose
        self._schema, self._entry = schema, Entry(schema, applier_id)
        self._drain, self._stop, self._thread, self._failed_in_a_row = drain, stop, 0, 0
        self._connection: psycopg.Connection[Any] | None = None
        self._is_back = True  # since it last failed, the database has served it
        self._has_lost = False  # a connection, whenever that was
        self._lost: TurnLost | None = None  # in which the last connection broke, until it is recorded
        self.hand, self._recovery = hand or Hand(), recovery or Recovery()
        #: It was given up: a handler does not return. If it does after all, the worker ends.
        self.abandoned, self.totals = False, Totals()
        #: Why the worker ended before it should have; None while it runs and after a good end.
        self.error: Exception | None = None
        sleep, passes, tallies = Sleep(schema), Passes(schema, prune=prune), tallies or Tallies()
        self._visits = Visits(
            max_keys=max_keys,
            stop=stop,
            bell=bell,
            sleep=sleep,
            totals=self.totals,
            tallies=tallies,
            found=self._found,
            careful=careful,
        )
        self._rounds = Rounds(
            self._chosen, passes, self._visits, sleep, drain=drain, stop=stop, bell=bell, ended=self._ended
        )

    def give_up(self) -> None:
        """Give the worker up for lost, from another thread: its handler does not return."""
        self.abandoned = True
        self._visits.end_probe(self._thread)

    def _ended(self) -> bool:
        return self._stop.requested or self.abandoned

    @property
    def is_over(self) -> bool:
        """Whether it has nothing in hand after a stop: it connects, which may take long, and then ends."""
        return self._stop.requested and self._connection is None

    def _found(self) -> None:
        self._failed_in_a_row = 0

    def _chosen(self, connection: psycopg.Connection[Any]) -> Sequence[Target]:
        """Choose topics, which writes: where that is done after a failure, the database is back."""
        targets = self._choose(connection)
        self._visits.serve(target.topic for target in targets)
        self._entry.say_careful(connection, self._rounds.careful_topics)
        if not self._is_back:
            self._is_back = True
            self._recovery.succeeded()
        return targets

    def run(self) -> None:
        """Apply until stopped, or with drain until nothing is ready. Never raises: see `error`."""
        self._thread = threading.get_ident()
        try:
            while not self._ended() and self._run_once():
                pass
        except BaseException as error:
            if not self._stop.expired and not self.abandoned:
                self.error = ended_by(error)
                with suppress(Exception):  # a log that fails may be what has ended it
                    log.exception("worker failed")

    def _run_once(self) -> bool:
        """Apply on one connection; return whether to go on with another."""
        try:
            with self._connect() as self._connection:
                self._serve(self._connection)
        except TurnLost as lost:
            self._has_lost, self._lost = True, lost
            if not lost.closed:
                # It was alone: no other key is suspected.
                return self._after_lost(lost.error, lost=True, careful=False)
            log.warning("the connection was closed by a handler", extra={"key": lost.alone.key})
            return True
        except SessionChanged as error:
            log.info("a new connection: %s", error)
            return True
        except psycopg.Error as error:
            # What was cut off is no batch, which would have been taken apart: no key was in hand.
            careful = not is_cut(error)
            self._has_lost = self._has_lost or careful
            return self._after_lost(error, lost=is_lost(error), careful=careful)
        except InturnError as error:
            self.error = error
        finally:
            self._connection = None
        return False

    def _serve(self, connection: psycopg.Connection[Any]) -> None:
        try:
            self._record_lost(connection)
            self._rounds.serve(connection)
        except psycopg.Error as error:
            check_after(error, connection, self._schema)
            raise
        if not (self.abandoned or self._stop.expired or self._has_lost or self._rounds.are_careful):
            self._entry.say_end(connection)

    def _after_lost(self, error: BaseException, *, lost: bool, careful: bool = True) -> bool:
        """Wait after the database was lost, or refused; return whether to go on.

        careful: any of several keys may have been the cause.
        """
        if self._ended():
            return False
        if careful:
            self._visits.be_careful()
        self._failed_in_a_row, self._is_back = self._failed_in_a_row + 1, False
        if self._drain and (not lost or self._failed_in_a_row > pacing.DRAIN_RECONNECTS):
            self.error = ended_by(error)
            return False
        self._wait_to_reconnect(error, lost=lost)
        return True

    def _record_lost(self, connection: psycopg.Connection[Any]) -> None:
        """Record the turn in which the last connection broke.

        Where inturn refuses that, as the topic is granted to others by now, the lease runs out.
        """
        if self._lost is not None:
            try:
                self.totals.failures += self._lost.record(connection)
            except psycopg.DatabaseError as error:
                if not (error.sqlstate or "").startswith("IT"):
                    raise
                log.warning("a lost turn was not recorded: %s", on_one_line(error))
            self._lost = None

    @property
    def backend(self) -> tuple[int | None, str | None]:
        """Its session in the database, and of which run of a server; None where nobody knows: by a pooler."""
        if (connection := self._connection) is None or connection.closed or is_pooled(connection):
            return None, None
        return connection.info.backend_pid, getattr(connection, "server", None)

    def hang_up(self) -> None:
        """Cut its connection, if it goes through a pooler: that ends the session, which no number names."""
        if (connection := self._connection) is not None and is_pooled(connection):
            hang_up(connection)

    def cancel(self) -> None:
        """Cancel the statement that the worker waits for, if any, and so its transaction."""
        if (connection := self._connection) is not None and not connection.closed:
            try:
                connection.cancel_safe(timeout=2.0)
            except psycopg.Error as error:
                log.warning("could not cancel: %s", error)

    def _wait_to_reconnect(self, error: BaseException, *, lost: bool) -> None:
        seconds = pacing.reconnect_seconds(self._failed_in_a_row)
        what = "lost the database" if lost else "the database refused"
        log.warning("%s, connecting again in %.1f s: %s", what, seconds, on_one_line(error))
        if lost:
            self._recovery.wait(seconds, self._stop)
        else:  # that somebody else was connected says nothing of what was refused
            self._stop.wait(seconds)
