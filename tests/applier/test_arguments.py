"""What is given to Fleet and Timeouts and cannot be is refused at once, in words."""

from __future__ import annotations

from typing import Any

import pytest
from support import shop
from support.database import Database

from inturn.applier import Fleet, Timeouts
from inturn.schema.errors import UnknownTopic


def test_a_fleet_that_could_do_nothing_is_refused() -> None:
    wrong: Any
    for name, number in (("workers", 0), ("workers", -1), ("max_keys", 0)):
        wrong = {name: number}
        with pytest.raises(ValueError, match=f"{name} is {number}; 1 or more are needed"):
            Fleet("", **wrong)
    letters: Any = "orders"
    with pytest.raises(TypeError, match=r"topics is the text 'orders'; give a list of topics: \['orders'\]"):
        Fleet("", topics=letters)


def test_a_timeout_that_no_post_can_keep_is_refused() -> None:
    for name in ("connect", "read", "whole"):
        for wrong in (0, -1.5, float("nan")):
            with pytest.raises(ValueError, match=f"{name} is {wrong}; a timeout is over 0 seconds"):
                Timeouts(**{name: wrong})
    assert Timeouts(whole=float("inf")).whole == float("inf")


def test_a_fleet_is_started_once(database: Database) -> None:
    """Its workers would have the names of those that there are. One that could not be may be tried again."""
    fleet = Fleet(database.applier_dsn, shop.applier, drain=True)
    with pytest.raises(UnknownTopic):
        fleet.start()
    shop.open_shop(database)
    fleet.start()
    with pytest.raises(RuntimeError, match="this fleet was started before"):
        fleet.start()
    assert fleet.wait(60)
    assert fleet.end(0).error is None
