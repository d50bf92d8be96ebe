"""Retry, Outage, Hold, Skip: what a handler raises to say itself what becomes of its command."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

import psycopg

#: The longest that a handler may ask to wait.
LONGEST_RETRY = timedelta(days=365)


class Verdict(Exception):
    """What a handler raises to say what becomes of its command; its effects are undone.

    Raise one of the subclasses: Retry, Outage, Hold, Skip. The reason is recorded, and with `raise ... from
    error` the original error too.
    """

    #: What a SQL target raises for the same.
    sqlstate: ClassVar[str]
    _fallback: ClassVar[str]

    def __init__(self, reason: object = "") -> None:
        # It is raised where something has failed already: the reason may be that error itself.
        self.reason = str(reason).strip() or self._fallback
        super().__init__(self.reason)


class _Later(Verdict):
    """Try the command again, after a while."""

    def __init__(self, reason: object = "", *, after: float | timedelta | None = None) -> None:
        """Make one.

        Args:
            reason: recorded as the key's error.
            after: how long to wait, in seconds or as a timedelta; None: the topic's usual backoff.

        Raises:
            ValueError: after is negative, not a number, or more than a year.
        """
        super().__init__(reason)
        seconds = after.total_seconds() if isinstance(after, timedelta) else after
        # NaN is within no bounds.
        if seconds is not None and not 0 <= seconds <= LONGEST_RETRY.total_seconds():
            raise ValueError(f"{type(self).__name__} after {after}: 0 seconds to a year are allowed")
        self.after = None if seconds is None else timedelta(seconds=seconds)


class Retry(_Later):
    """Try the command again, after a while.

    It counts as an attempt: after the topic's max_attempts of them, its on_exhausted decides.
    """

    sqlstate = "IT020"
    _fallback = "the handler asked to try again"


class Outage(_Later):
    """Try the command again later, without counting an attempt: something that it needs is down.

    There is no limit to how often.
    """

    sqlstate = "IT023"
    _fallback = "the handler says that what it needs is down"


class Hold(Verdict):
    """Hold the key at this command at once, even if attempts are left: an operator decides."""

    sqlstate = "IT021"
    _fallback = "the handler asked to hold"

    def __init__(self, reason: object) -> None:
        super().__init__(reason)


class Skip(Verdict):
    """Skip the command, for good: it stays in the log, with an entry in skip, and the key goes on."""

    sqlstate = "IT022"
    _fallback = "the handler asked to skip"

    def __init__(self, reason: object) -> None:
        super().__init__(reason)


_ASKING = {verdict.sqlstate for verdict in (Retry, Outage, Hold, Skip)}


@dataclass(frozen=True, slots=True)
class Requested:
    """What a handler asked for, as a SQL target says it; no sqlstate: nothing."""

    sqlstate: str | None = None
    detail: str | None = None

    @property
    def outage(self) -> bool:
        return self.sqlstate == Outage.sqlstate

    @property
    def hold(self) -> bool:
        return self.sqlstate == Hold.sqlstate

    @property
    def skip(self) -> bool:
        return self.sqlstate == Skip.sqlstate


NOTHING = Requested()


def asked(error: BaseException) -> Requested:
    """Return what an error that left a handler asks for: a Verdict, or a SQL function's SQLSTATE for one."""
    if isinstance(error, _Later) and error.after is not None:
        return Requested(error.sqlstate, f"{error.after.total_seconds():.6f} seconds")
    if isinstance(error, Verdict):
        return Requested(error.sqlstate)
    if isinstance(error, psycopg.Error) and error.diag.sqlstate in _ASKING:
        return Requested(error.diag.sqlstate, error.diag.message_detail)
    return NOTHING
