"""A turn that is taken alone: its key is claimed by a short lease first, so that it is charged.

Workers take keys so when they start where another applier may have died of one, after a connection that was
lost with several keys in hand, and after a failure of which nobody can tell which command it was; suspects
always. See the SQL functions _claim_alone, _end_alone and _lose_alone.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn, Protocol

import psycopg
from psycopg.pq import TransactionStatus

from inturn.applier import calls
from inturn.applier.breaker import Breaker, is_outage
from inturn.applier.failure import describe, encodable, on_one_line
from inturn.applier.inside.batch import Batch
from inturn.applier.inside.session import SessionChanged, session_of
from inturn.applier.process.failure_log import FAILURES
from inturn.applier.stop import Stop
from inturn.schema.errors import Fenced, SchemaMismatch
from inturn.schema.version import check_after

#: A session that ends with one of these has ended because of what was done in it:
#: idle_in_transaction_session_timeout, transaction_timeout.
_OF_THE_COMMAND = {"25P03", "25P04"}
#: When to ask again where a process may take no key alone, as it has just begun one that was lost.
BLOCKED_SECONDS = 0.05
#: How often the outcome of a turn is recorded again after it was lost against another transaction.
_LOSE_ATTEMPTS = 5
#: What is said of a turn of which nothing was recorded: its lease runs out, or had by then.
NOT_RECORDED, FENCED = "not recorded", "fenced"
#: The server ended it, for a reason of its own: another session crashed it; it cannot go on now.
_OF_THE_SERVER = {"57P02", "57P03"}


@dataclass(slots=True)
class Alone:
    """A key that was claimed alone.

    is_begun: its turn has the key. Whatever ends the wait for that, no command has.
    is_shared: several of its commands may have been begun in the transaction of its turn, so that nobody can
        tell which of them has ended it: it is a suspect, of which one command is taken next.
    """

    schema: str
    topic: str
    key: str
    epoch: int
    ready_at: datetime
    is_begun: bool = False
    is_shared: bool = False


class TurnLost(Exception):
    """The connection broke while a key was in hand alone; `record` says so on the next one.

    Attributes:
        closed: it did not break: a handler has closed it.
    """

    def __init__(self, alone: Alone, error: BaseException, *, closed: bool, server: str) -> None:
        super().__init__(alone, error)
        self.alone = alone
        self.error = error
        self.closed = closed
        self._server = server

    def record(self, connection: psycopg.Connection[Any]) -> bool:
        """Record what became of the turn, on a new connection; return whether that was a failure.

        Raises:
            psycopg.Error: the connection or the database failed; the lease will run out.
        """
        state = getattr(self.error, "sqlstate", None)
        restarted = server_of(connection) != self._server
        error: str | None = describe(self.error)
        if not self.alone.is_begun or (not self.closed and (state in _OF_THE_SERVER or restarted)):
            error = None
        is_clear = (self.closed or state in _OF_THE_COMMAND) and not self.alone.is_shared
        outcome = _lose(connection, self.alone, error, is_clear=is_clear)
        if error is not None:
            _log(self.alone, f"the connection was lost with the command in hand ({outcome})", error)
        return error is not None and outcome not in {NOT_RECORDED, FENCED}


class NotHeld(Exception):
    """A key that was claimed alone could not be locked for its turn: nothing of it was begun."""


def hold(connection: psycopg.Connection[Any], alone: Alone) -> int:
    """Lock a key that was claimed alone, to the end of the transaction, before any limit is set.

    Returns:
        how many commands its turn takes at the most.

    Raises:
        NotHeld: another claim was quicker, or the session's timeouts have ended the wait for somebody else.
    """
    try:
        call = calls.lease.hold_alone(alone.schema, alone.topic, alone.key, alone.epoch)
        most = session_of(connection).call(call)
    except psycopg.Error as error:
        if error.sqlstate == Fenced.sqlstate or is_cut(error):
            raise NotHeld from error
        raise
    alone.is_begun = True
    return most


def is_cut(error: BaseException) -> bool:
    """Return whether a statement was cut off while it waited: statement_timeout, a cancel, lock_timeout."""
    return isinstance(error, psycopg.errors.QueryCanceled | psycopg.errors.LockNotAvailable)


def is_transient(error: BaseException) -> bool:
    """Return whether a statement was lost against another transaction, as by a deadlock."""
    return isinstance(error, psycopg.Error) and (error.sqlstate or "").startswith("40")


def is_lost(error: BaseException) -> bool:
    """Return whether an error says by its kind that the connection was lost."""
    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)


def raise_lost(error: BaseException) -> NoReturn:
    """Raise that the connection was lost with which an error came, whatever a handler made of it.

    A statement that was only cut off would be charged to nobody, and the same keys would share a batch again.
    """
    if is_lost(error) and not is_cut(error):
        raise error
    raise psycopg.OperationalError(f"the connection is gone: {on_one_line(error)}") from error


def server_of(connection: psycopg.Connection[Any]) -> str:
    """Return which run of the server a connection is to."""
    return session_of(connection).call(calls.session.server())


class AloneTarget(Protocol):
    """What can apply the commands of a key that was claimed alone."""

    @property
    def topic(self) -> str: ...

    @property
    def schema(self) -> str: ...

    @property
    def applier_id(self) -> str: ...

    @property
    def stop(self) -> Stop: ...

    @property
    def breaker(self) -> Breaker: ...

    def turn_alone(self, connection: psycopg.Connection[Any], alone: Alone) -> Batch:
        """Apply its commands and end the turn, in a transaction.

        Whatever it raises is charged to the key, but NotHeld.
        """
        ...


def take_alone(target: AloneTarget, connection: psycopg.Connection[Any], since: datetime | str) -> Batch:
    """Claim a key alone and take its turn; return what was done.

    Args:
        connection: in autocommit, with isolation level READ COMMITTED.
        since: as for apply_batch.

    Raises:
        psycopg.Error: the claim failed; nothing was changed.
        SessionChanged: the session is not as it was; the key was let go.
        TurnLost: the connection broke with the key in hand.
        SchemaMismatch: the schema was upgraded with the key in hand, which was let go if that can be said.
        OwnerChanged: the topic is refused; nothing was changed.
    """
    row = session_of(connection).ask(
        calls.lease.claim_alone(target.schema, target.topic, since, target.applier_id), target.topic
    )
    if row is None:
        return Batch()
    key, epoch, ready_at, server, settings = row
    if key is None:
        target.stop.wait(BLOCKED_SECONDS)
        return Batch(keys=1, redo=True, lost=True)
    if epoch is None:
        return Batch(keys=1, hand=ready_at, empty=1)
    alone = Alone(target.schema, target.topic, key, epoch, ready_at)
    return _take(target, connection, alone, server, settings)


def _take(
    target: AloneTarget, connection: psycopg.Connection[Any], alone: Alone, server: str, settings: str
) -> Batch:
    try:
        session_of(connection).check(settings)
        return target.turn_alone(connection, alone)
    except SessionChanged:
        _lose(connection, alone, None, is_clear=False)
        raise
    except NotHeld:
        # Whoever has it locked may have it for long: nothing is said, and the lease runs out.
        return Batch(keys=1, hand=alone.ready_at)
    except BaseException as error:
        if connection.closed:
            # psycopg tells a lost one: that is broken too.
            raise TurnLost(alone, error, closed=not connection.broken, server=server) from error
        if target.stop.expired:
            _lose(connection, alone, None, is_clear=False)
            raise
        _end_if_upgraded(error, connection, alone)
        if is_transient(error):
            # Handlers' own are caught before: this was in a statement of inturn, and may be so each time.
            said = f"lost against another transaction: {on_one_line(error)}"
            outcome = _lose(connection, alone, said, is_clear=None)
            _log(alone, f"a turn was not recorded ({outcome})", said)
            return Batch(keys=1, hand=alone.ready_at)
        text = describe(error)
        outcome = _lose(connection, alone, text, is_clear=_is_clear(target, alone, error, text))
        _log(alone, f"command failed ({outcome})", text)
        return Batch(keys=1, failures=1, hand=alone.ready_at)


def _is_clear(target: AloneTarget, alone: Alone, error: BaseException, text: str) -> bool | None:
    """Return what to say of a turn that was rolled back: see _lose_alone.

    What handlers fail with is caught before. A COMMIT fails by an outage where foreign tables were written.
    """
    if not alone.is_begun:
        return None
    breaker = target.breaker
    if is_outage(error) and not breaker.failed(alone.key, text, probe=breaker.is_probing):
        return None
    return not alone.is_shared


def _end_if_upgraded(error: BaseException, connection: psycopg.Connection[Any], alone: Alone) -> None:
    """If the schema was upgraded meanwhile, let the key go, uncharged, and raise SchemaMismatch."""
    try:
        check_after(error, connection, alone.schema)
    except SchemaMismatch:
        # Where the new revision has nothing to say that by, the lease runs out.
        with suppress(psycopg.Error):
            _lose(connection, alone, None, is_clear=False)
        raise


def _lose(
    connection: psycopg.Connection[Any], alone: Alone, error: str | None, *, is_clear: bool | None
) -> str:
    session = session_of(connection)
    if connection.info.transaction_status is not TransactionStatus.IDLE:
        # A transaction that a handler has begun, or one that the driver left open.
        session.worn = session.spent = True
        session.roll_back()
    if error is not None:
        error = encodable(error, connection.info)
    call = calls.lease.lose_alone(alone.schema, alone.topic, alone.key, alone.epoch, error, is_clear=is_clear)
    for attempt in range(_LOSE_ATTEMPTS):
        try:
            return session.call(call)
        except psycopg.Error as lost:
            if attempt < _LOSE_ATTEMPTS - 1 and (is_transient(lost) or is_cut(lost)):
                continue
            if is_cut(lost):
                break  # somebody else has it locked: the lease runs out, and the key is a suspect
            raise
    return NOT_RECORDED


def _log(alone: Alone, what: str, error: str) -> None:
    extra = {"topic": alone.topic, "key": alone.key, "epoch": alone.epoch}
    FAILURES.log(logging.WARNING, what, error, extra)
