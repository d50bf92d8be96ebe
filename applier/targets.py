"""Targets: the one table of their kinds, and what applies the commands of a topic of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from inturn.applier.breaker import Breaker
from inturn.applier.handlers import Applier
from inturn.applier.inside.batch import Target
from inturn.applier.inside.hand import Hand
from inturn.applier.inside.python_target import PythonTarget
from inturn.applier.inside.sql_target import SqlTarget
from inturn.applier.outside.effect import Effect, HandlerEffect, Timeouts
from inturn.applier.stop import Stop
from inturn.schema.advice import advised
from inturn.schema.errors import TargetRefused


class Served(NamedTuple):
    """A topic to be served.

    Attributes:
        limit: how many of its keys are worked on outside the database at a time.
        timeout: how long a command may take, in seconds; None: for ever.
        merges: it has merge rules, or had some.
    """

    topic: str
    target: str
    limit: int
    timeout: float | None
    merges: bool = False


@dataclass(frozen=True, slots=True)
class Parts:
    """What a fleet has to make a target from.

    Attributes:
        handlers: what the user gave; None: nothing.
        applier_id, breaker, hand: of the worker that it is made for.
        posted: all topics that are posted somewhere, served here or not.
    """

    schema: str
    handlers: Applier | None
    stop: Stop
    http_timeouts: Timeouts
    applier_id: str = ""
    breaker: Breaker = field(default_factory=Breaker)
    hand: Hand = field(default_factory=Hand)
    posted: frozenset[str] = frozenset()

    def handled(self, topic: str) -> bool:
        """Whether there are handlers for a topic."""
        return self.handlers is not None and topic in self.handlers.topics


def _nothing(_served: Served, _parts: Parts) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of target.

    Attributes:
        begins: how a target of the kind is written.
        inside: makes what applies a topic in the database's transactions; None: not this process.
        outside: makes what applies it by lease, outside of them; None: not this process. May raise
            TargetRefused.
        takes_handlers: the user's handlers apply it.
        is_posted: its commands are posted to a service, signed with a secret.
    """

    begins: tuple[str, ...]
    inside: Callable[[Served, Parts], Target | None] = _nothing
    outside: Callable[[Served, Parts], Effect | None] = _nothing
    takes_handlers: bool = False
    is_posted: bool = False


class MissingPart(TargetRefused):
    """A topic needs a part of inturn that is not here: an extra, or a later release."""


def _sql(served: Served, parts: Parts) -> Target:
    return SqlTarget(served.topic, parts.schema, parts.applier_id, parts.stop, parts.breaker, served.timeout)


def _python(served: Served, parts: Parts) -> Target | None:
    topic, handlers = served.topic, parts.handlers
    if handlers is None or not parts.handled(topic) or handlers.is_outside(topic):
        return None
    return PythonTarget(
        topic,
        handlers,
        parts.stop,
        parts.schema,
        parts.applier_id,
        parts.breaker,
        served.timeout,
        parts.hand,
        served.merges,
    )


def _python_outside(served: Served, parts: Parts) -> Effect | None:
    if parts.handlers is None or not parts.handlers.is_outside(served.topic):
        return None
    return HandlerEffect(parts.handlers)


def _http(served: Served, parts: Parts) -> Effect:
    try:
        from inturn.applier.http.effect import HttpEffect
        from inturn.applier.http.signature import signer_of
    except ImportError as error:
        raise MissingPart(
            f"topic {served.topic!r} is posted to a service, and the module {error.name} is missing",
            hint="pip install 'inturn[http]'",
            topic=served.topic,
        ) from error
    return HttpEffect(served.target, signer_of(served.topic, posted=parts.posted), parts.http_timeouts)


#: The same kinds as the SQL function _target_kinds has: it says how each is written and what serves it.
KINDS = {
    "python": Kind(("python",), inside=_python, outside=_python_outside, takes_handlers=True),
    "sql": Kind(("sql:",), inside=_sql),
    "http": Kind(("http://", "https://"), outside=_http, is_posted=True),
}


def find_kind(target: str) -> Kind | None:
    """Return the kind of a target; None: this version knows none that is written so."""
    return next((kind for kind in KINDS.values() if target.startswith(kind.begins)), None)


def is_posted(target: str) -> bool:
    """Return whether commands for a target are posted to a service."""
    kind = find_kind(target)
    return kind is not None and kind.is_posted


def takes_handlers(target: str) -> bool:
    """Return whether the user's handlers apply the commands for a target."""
    kind = find_kind(target)
    return kind is not None and kind.takes_handlers


def kind_of(served: Served) -> Kind:
    """Return the kind of a topic's target.

    Raises:
        MissingPart: this version knows none that is written so.
    """
    kind = find_kind(served.target)
    if kind is None:
        raise MissingPart(
            f"topic {served.topic!r} has the target {served.target}, which this inturn does not know",
            hint="Upgrade this machine's package with: pip install --upgrade inturn",
            topic=served.topic,
        )
    return kind


def refuse_misfit(served: Served, parts: Parts, *, named: bool) -> None:
    """Make sure that what was given for a topic is what its target takes.

    Args:
        named: the topic was asked for by its name. Otherwise one of an unknown kind is left out later.

    Raises:
        TargetRefused: it is not.
    """
    if not named and find_kind(served.target) is None:
        return
    handled, takes = parts.handled(served.topic), kind_of(served).takes_handlers
    if handled and not takes:
        raise TargetRefused(
            f"topic {served.topic!r} has handlers in Python and the target {served.target}",
            hint="Remove one: a topic has one target",
            topic=served.topic,
        )
    if named and takes and not handled:
        raise TargetRefused(
            f"topic {served.topic!r} is applied by Python and no handler of it was given",
            hint=advised("Name the module: inturn apply --app MODULE:APPLIER", parts.schema),
            topic=served.topic,
        )
