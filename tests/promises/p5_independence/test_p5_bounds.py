"""P5: how soon the others go on when a command hangs or a connection is half-open, by a clock of the test.

The threads that look run as they are, with the figures that they have; time passes while they sleep, and
while the database ends a session. The pages name the same figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from support.place import DOCS

from inturn.applier import breaker, calls, pacing
from inturn.applier.command import ClaimedCommand
from inturn.applier.inside import hand, visits, watchdog
from inturn.applier.inside.hand import Hand
from inturn.applier.inside.python.judge import NO_HANDLER_WAIT
from inturn.applier.inside.watchdog import Watchdog
from inturn.applier.process import half_open
from inturn.applier.process.half_open import HalfOpen, Timed
from inturn.applier.stop import Stop
from inturn.schema import connection

#: What is promised, in seconds: from a command's deadline, and from when nothing arrives any more.
OTHERS_GO_ON, HALF_OPEN_IS_NOTICED = 5.0, 30.0
_TIMEOUT = 30.0
#: Where within a round of looks it happens.
_MOMENTS = [n / 10 for n in range(21)]


class _Clock:
    """Time that passes while somebody sleeps, and at no other time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class _Call:
    """A call of the database that takes so long, and says that."""

    def __init__(self, clock: _Clock, seconds: float, says: object) -> None:
        self._clock, self._seconds, self._says = clock, seconds, says

    def on(self, _: object) -> object:
        self._clock.sleep(self._seconds)
        return self._says


@pytest.fixture(params=[True, False], ids=["the session goes on", "the session ends at once"])
def clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> _Clock:
    """Have time pass by the test's clock; the database takes all the time that it has to end a session."""
    clock, goes_on = _Clock(), request.param

    def terminate(_pid: int | None, _server: str | None, milliseconds: int) -> _Call:
        return _Call(clock, milliseconds / 1000 if goes_on else 0.0, None)

    for module in (hand, watchdog, half_open):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(calls.session, "terminate", terminate)
    monkeypatch.setattr(calls.session, "is_idle", lambda _pid: _Call(clock, 0.0, says=True))
    return clock


def _connect() -> Any:
    return nullcontext(None)


@dataclass
class _Hanging:
    """A worker whose handler does not return, nor heeds a cancel."""

    clock: _Clock
    hand: Hand = field(default_factory=Hand)
    cancelled: list[float] = field(default_factory=list)
    backend: tuple[int | None, str | None] = (1, "a run of the server")

    def cancel(self) -> None:
        self.cancelled.append(self.clock.now)

    def hang_up(self) -> None: ...

    def give_up(self) -> None: ...


def test_p5_the_others_go_on_within_five_seconds_of_the_deadline_of_a_command_that_hangs(
    clock: _Clock,
) -> None:
    """Its statement is cancelled by then, and another worker is in the place of one that does not return."""
    order = ClaimedCommand("bad", "bad", 1, "hang", "{}", datetime.now(UTC), 1, 1)
    for moment in _MOMENTS:
        worker, stop, replaced = _Hanging(clock), Stop(), list[float]()
        stop.request()  # it looks until nobody is at work

        def replace(_worker: object, _careful: bool, replaced: list[float] = replaced) -> None:
            replaced.append(clock.now)

        deadline = clock.now + _TIMEOUT + moment
        with worker.hand.holding(order, _TIMEOUT + moment, is_alone=False):
            Watchdog(
                _connect,
                lambda worker=worker, replaced=replaced: [] if replaced else [worker],  # type: ignore[misc]
                replace,
                schema="inturn",
                stop=stop,
            ).run()
        assert 0 <= worker.cancelled[0] - deadline <= OTHERS_GO_ON
        assert watchdog.GIVE_UP_SECONDS <= replaced[0] - deadline <= OTHERS_GO_ON


@dataclass(eq=False)
class _Swallowed:
    """A connection on which no answer comes any more."""

    waiting_since: float
    server: str = "a run of the server"
    pgconn: object = None

    @property
    def info(self) -> _Swallowed:
        return self

    backend_pid: int = 1


def test_p5_a_half_open_connection_is_given_up_within_thirty_seconds(
    clock: _Clock, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(half_open, "is_pooled", lambda _: False)
    given_up: list[float] = []
    monkeypatch.setattr(half_open, "hang_up", lambda _: given_up.append(clock.now))
    ends_at_once = "at once" in request.node.name
    for moment in _MOMENTS:
        given_up.clear()
        since, stop = clock.now + moment, Stop()
        swallowed = cast(Timed, _Swallowed(since))
        stop.request()
        HalfOpen(_connect, lambda swallowed=swallowed: [] if given_up else [swallowed], stop).run()  # type: ignore[misc]
        assert half_open.ANSWER_SECONDS <= given_up[0] - since <= HALF_OPEN_IS_NOTICED
        # As failures.md says of a session that ends when it is told.
        assert not ends_at_once or given_up[0] - since <= 15


def test_p5_what_the_kernels_look_for_is_noticed_within_thirty_seconds() -> None:
    ours, servers = connection.KEEPALIVE, connection._PROBED
    assert ours["keepalives_idle"] + ours["keepalives_interval"] * ours["keepalives_count"] <= 30
    assert ours["tcp_user_timeout"] <= 30_000
    idle, interval, count = (int(servers[f"tcp_keepalives_{name}"]) for name in ("idle", "interval", "count"))
    assert idle + interval * count <= 30


_SAID = {0.5: "half a second", 2: "two", 5: "five", 10: "ten", 20: "twenty", 30: "thirty"}


def _figures() -> Iterator[tuple[str, str]]:
    """Return what pages say, with the figures of the code."""
    kept = {name: str(value) for name, value in connection.KEEPALIVE.items()}
    probed = {name.removeprefix("tcp_keepalives_"): int(value) for name, value in connection._PROBED.items()}
    noticed = probed["idle"] + probed["interval"] * probed["count"]
    failures, deploy = "explanation/failures.md", "how-to/deploy-appliers.md"
    give_up = watchdog.GIVE_UP_SECONDS
    yield failures, f"does not return within {_SAID[give_up]} seconds of that is abandoned"
    yield failures, f"The other keys go on within {_SAID[OTHERS_GO_ON]} seconds of the deadline"
    yield "reference/settings.md", f"does not return within {give_up:g} seconds of that is abandoned"
    yield failures, f"\n{_SAID[hand.MOST_ABANDONED].title()} abandoned handlers end the process"
    for page in (failures, deploy):
        yield page, f"has waited {_SAID[half_open.ANSWER_SECONDS]} seconds for an answer"
    yield deploy, f"gives it up after {connection.KEEPALIVE['tcp_user_timeout'] / 1000:g} seconds"
    yield deploy, f"(`{' '.join(f'{name}={value}' for name, value in kept.items())}`)"
    yield deploy, f"an attempt to connect after {connection.CONNECT_TIMEOUT} "
    yield failures, f"| its host, or the network | within {noticed} seconds |"
    checked = connection._CHECKED.removesuffix("s")
    yield failures, f"| the process | at once | within {checked} seconds, on a server on Linux"
    yield deploy, f"`client_connection_check_interval` to {checked} seconds"
    yield failures, f"takes the first {_SAID[visits.CAREFUL_KEYS]} keys of a topic in this way"
    waits = NO_HANDLER_WAIT.removesuffix(" seconds")
    yield failures, f"the key is put off for {_SAID[float(waits)]} seconds, which counts as no attempt"
    yield failures, f"commands of {_SAID[breaker.OPENING_FAILURES]} different keys in a row fail"
    first, last = _SAID[breaker.FIRST_PAUSE_SECONDS], _SAID[breaker.LAST_PAUSE_SECONDS]
    yield failures, f"after a pause that begins at {first} and doubles up to {last} seconds"
    yield failures, f"report this within {_SAID[pacing.CHOOSE_SECONDS]} seconds"


def test_pages_name_the_figures_that_the_code_has() -> None:
    for page, says in _figures():
        assert says in (DOCS / page).read_text(), page
