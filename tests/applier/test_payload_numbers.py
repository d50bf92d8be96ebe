"""Numbers in payloads: as what handlers of every kind get them, and which fail their command."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from support.database import Database
from support.shop import TOPIC, apply_all, open_shop

from inturn.applier import Applier, Command

#: More digits than a float has, a zero at the end, and numbers that are whole.
_PAYLOAD = '{"price": 19.90, "rate": 0.1234567890123456789, "deep": [{"small": 1E-30}], "n": 3, "big": 1e20}'
KINDS = ("single", "in batches", "plain", "coroutine")


def _applier(kind: str, seen: list[Any], parse_float: Callable[[str], Any] | None) -> Applier:
    applier = Applier(parse_float=parse_float)

    def inside(_connection: psycopg.Connection[Any], command: Command) -> None:
        seen.append(command.payload)

    def in_batches(_connection: psycopg.Connection[Any], commands: list[Command]) -> None:
        seen.extend(command.payload for command in commands)

    def plain(command: Command) -> None:
        seen.append(command.payload)

    async def coroutine(command: Command) -> None:
        seen.append(command.payload)

    if kind == "single":
        applier.handler(TOPIC)(inside)
    elif kind == "in batches":
        applier.batch_handler(TOPIC)(in_batches)
    elif kind == "plain":
        applier.handler(TOPIC, outside=True)(plain)
    else:
        applier.handler(TOPIC, outside=True)(coroutine)
    return applier


def _apply(
    database: Database, kind: str, parse_float: Callable[[str], Any] | None, *payloads: str
) -> list[Any]:
    open_shop(database, settings="max_attempts => 1")
    for number, payload in enumerate(payloads):
        database.execute("SELECT inturn.append(%s, %s, 'insert', %s::jsonb)", [TOPIC, f"k{number}", payload])
    seen: list[Any] = []
    apply_all(database, _applier(kind, seen, parse_float))
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_with_decimal_every_digit_reaches_the_handler(database: Database, kind: str) -> None:
    (payload,) = _apply(database, kind, Decimal, _PAYLOAD)
    # Compared as text too: 19.90 equals 19.9.
    assert repr(payload["price"]) == "Decimal('19.90')"
    assert repr(payload["rate"]) == "Decimal('0.1234567890123456789')"
    assert payload["deep"] == [{"small": Decimal("1E-30")}]
    assert (payload["n"], payload["big"]) == (3, 10**20)
    assert type(payload["n"]) is type(payload["big"]) is int


@pytest.mark.parametrize("kind", KINDS)
def test_without_it_they_are_floats(database: Database, kind: str) -> None:
    (payload,) = _apply(database, kind, None, _PAYLOAD)
    assert type(payload["price"]) is type(payload["deep"][0]["small"]) is float
    assert type(payload["n"]) is type(payload["big"]) is int


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_that_it_refuses_fails_its_command_alone(database: Database, kind: str) -> None:
    def few_digits(text: str) -> Decimal:
        if len(text) > 6:
            raise ValueError(f"too many digits: {text}")
        return Decimal(text)

    assert _apply(database, kind, few_digits, '{"n": 1.123456789}', '{"n": 1.1}') == [{"n": Decimal("1.1")}]
    ((key, error),) = database.execute(
        "SELECT key, last_error FROM inturn.key_cursor WHERE held_at IS NOT NULL"
    )
    assert key == "k0"
    assert "too many digits: 1.123456789" in error
