"""What a process of `inturn apply` runs: the fleet that its options describe, attended to its end."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any, Protocol

from inturn.applier import Applier, Fleet, Outcome, Timeouts
from inturn.applier.process.totals import Totals
from inturn.applier.stop import Stop
from inturn.cli.advice import called
from inturn.cli.errors import Failure
from inturn.cli.exit_codes import ExitCode

#: How often a fleet is looked at, in seconds: for signals, its end, the time, and what it has done.
LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked of `inturn apply`, as JSON can hold it.

    Attributes:
        dsn: libpq connection string, complete; may hold a password.
        schema: where inturn is installed.
        app: MODULE:NAME of the Applier; None without one.
        topics: which to serve; empty: all that can be.
        workers, max_keys, drain, prepare: see Fleet.
        http_timeouts: seconds to connect, to the next byte, and all in all.
        max_seconds: when to stop, in seconds; None: never.
        grace: seconds that the command in hand may take once stopping.
        log_format: `text` or `json`.
        quiet: no summary when there was nothing to do; log warnings only, unless log_level says otherwise.
        counts: tell the parent what was counted for metrics.
        prune: see Fleet.
        named: what --dsn says, for command lines that are advised; None when it was not given.
        log_level: `debug`, `info`, `warning` or `error`; None: as quiet says.
    """

    dsn: str
    schema: str
    app: str | None
    topics: tuple[str, ...]
    workers: int
    max_keys: int
    http_timeouts: tuple[float, float, float]
    drain: bool
    prepare: bool
    max_seconds: float | None
    grace: float
    log_format: str
    quiet: bool
    log_level: str | None = None
    counts: bool = False
    prune: bool = False
    named: str | None = field(default_factory=lambda: called.dsn)

    @property
    def level(self) -> str:
        """The level of the log."""
        return self.log_level or ("warning" if self.quiet else "info")

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Options:
        found = json.loads(line)
        return cls(**found | {name: tuple(found[name]) for name in ("topics", "http_timeouts")})

    def fleet(self) -> Fleet:
        """Load the app and make the fleet; nothing is connected yet.

        Raises:
            Failure: the app cannot be loaded.
        """
        return Fleet(
            self.dsn,
            load_app(self.app) if self.app else None,
            topics=self.topics,
            workers=self.workers,
            max_keys=self.max_keys,
            drain=self.drain,
            prepare=self.prepare,
            schema=self.schema,
            http_timeouts=Timeouts(*self.http_timeouts),
            prune=self.prune,
        )


class Attended(Protocol):
    """A fleet, or what stands for several; see Fleet."""

    topics: list[str]
    stop: Stop

    @property
    def running(self) -> bool: ...

    @property
    def totals(self) -> Totals: ...

    def request_stop(self) -> None: ...

    def wait(self, seconds: float) -> bool: ...

    def end(self, grace: float) -> Outcome: ...

    def pending(self) -> int: ...


class Signals:
    """Counts the requests to stop: SIGTERM and SIGINT."""

    def __init__(self) -> None:
        self.count = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._received)
        if os.name == "posix":
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # see Process

    def requests(self) -> int:
        return self.count

    def _received(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1


def begun(begin: Callable[[], object], requests: Callable[[], int]) -> bool:
    """Run what connects, in a thread of its own; return whether it ended before a stop was asked for.

    A server that is away takes an attempt many seconds, which no signal ends.

    Args:
        begin: raises what is raised here.
        requests: as for attend.
    """
    failed: list[BaseException] = []

    def run() -> None:
        try:
            begin()
        except BaseException as error:  # noqa: BLE001 - raised below
            failed.append(error)

    thread = threading.Thread(target=run, name="inturn-start", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # there is no thread for it
        begin()
        return True
    while thread.is_alive() and not requests():
        thread.join(LOOK_SECONDS)
    if failed:
        raise failed[0]
    return not thread.is_alive()


@contextmanager
def ending(fleet: Attended, grace: float) -> Iterator[None]:
    """End a fleet within that many seconds if something is raised meanwhile.

    Otherwise the commands in hand would be cut off with the process.
    """
    try:
        yield
    except BaseException:
        fleet.end(grace)
        raise


def attend(
    fleet: Attended,
    requests: Callable[[], int],
    look: Callable[[], None],
    *,
    grace: float,
    max_seconds: float | None = None,
) -> Outcome:
    """Let a fleet run until it ends, is asked to, or the time is over; return how it ended.

    Args:
        fleet: started.
        requests: says how often it was asked to stop: once, after the command in hand; twice, at once.
        look: called again and again meanwhile.
        grace: seconds that the command in hand may take once stopping.
        max_seconds: when to stop, in seconds from now; None: never.
    """
    stop_at = time.monotonic() + max_seconds if max_seconds is not None else float("inf")
    while fleet.running and not fleet.stop.requested and not requests() and time.monotonic() < stop_at:
        fleet.wait(LOOK_SECONDS)
        look()
    fleet.request_stop()
    end_at = time.monotonic() + grace
    while fleet.running and requests() <= 1 and time.monotonic() < end_at:
        fleet.wait(LOOK_SECONDS)
        look()
    return fleet.end(0)


def exit_code(outcome: Outcome, options: Options) -> int:
    """Return the exit code for how a fleet ended, where no error ended it."""
    if outcome.cut:
        return ExitCode.UNFINISHED
    return ExitCode.HELD if options.drain and outcome.held else ExitCode.OK


def load_app(app: str) -> Applier:
    """Import the Applier that `--app` names.

    Raises:
        Failure: it is not there, or is not an Applier; its message says which.
    """
    module_name, _, attribute = app.partition(":")
    if not module_name or not attribute or "/" in module_name or module_name.endswith(".py"):
        raise Failure(
            f"--app {app} names no applier",
            hint="Write MODULE:NAME, as shop.handlers:applier",
            code=ExitCode.USAGE,
        )
    # As `python -m` does: the user's modules are beside where the user stands.
    sys.path.insert(0, "")
    module: Any = None
    found: Any
    try:
        module = found = importlib.import_module(module_name)
        for name in attribute.split("."):
            found = getattr(found, name)
    except (Exception, SystemExit) as error:  # a script ends itself, well even
        raise Failure(
            f"--app {app} cannot be loaded: {type(error).__name__}: {error}",
            hint=_remedy(module_name, module, error),
        ) from error
    if not isinstance(found, Applier):
        raise Failure(
            f"--app {app} is a {type(found).__name__}, not an inturn.applier.Applier",
            hint="Name the Applier that the handlers are registered with",
        )
    return found


def _remedy(name: str, module: object, error: BaseException) -> str:
    """Return what to do where an app could not be loaded; module: None where it could not be imported."""
    if module is not None:
        appliers = [found for found, value in sorted(vars(module).items()) if isinstance(value, Applier)]
        return f"In {name} there is: {', '.join(appliers)}" if appliers else f"There is no Applier in {name}"
    missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
    if missing and f"{name}.".startswith(f"{missing}."):
        return "Run it in the folder that holds the module, put that into PYTHONPATH, or install the package"
    return f"Try it alone: python -c 'import {name}'"
