"""What an applier of many topics does every few seconds grows with them, and no faster."""

from __future__ import annotations

import typing
from typing import ClassVar

import psycopg
from support.database import Database
from support.plans import cost
from support.roles import OWNER

from inturn.applier.breaker import Breaker, reports

_TOPICS = 500


class _Name(str):
    """A topic's name that counts how often any is compared with another."""

    __slots__ = ()
    compared: ClassVar[int] = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        _Name.compared += 1
        return str.__eq__(self, other)


def test_what_is_announced_is_found_without_comparing_each_topic_with_every_other() -> None:
    """10,000 topics were compared 50 million times, every five seconds, while nothing was applied."""
    breakers: dict[str, Breaker] = {_Name(f"t{number}"): Breaker() for number in range(_TOPICS)}
    _Name.compared = 0
    info = typing.cast("psycopg.ConnectionInfo", None)  # of what is down, and nothing is
    assert reports(breakers, [_Name(name) for name in breakers], info) == {}
    assert _Name.compared <= 2 * _TOPICS


def test_only_of_a_granted_topic_is_it_asked_who_may_apply_it(database: Database) -> None:
    """The question takes some blocks a topic, and longer than all the rest."""
    database.execute(
        "SELECT count(inturn.create_topic('t' || n, 'python')) FROM generate_series(1, %s) n", [_TOPICS]
    )
    database.execute("ANALYZE inturn.topic")
    listing = "SELECT count(*) FROM inturn._list_topics('{}')"
    with database.connect(user=OWNER) as connection:
        table = cost(connection, "SELECT count(*), min(target) FROM inturn.topic")
        assert cost(connection, listing) <= table + 10
