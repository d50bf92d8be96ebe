"""The appliers of a year, and handlers in which something goes wrong while a file says so: see year.

Only processes of the tests' own import it.
"""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import psycopg

from inturn.applier import Command, breaker, pacing
from inturn.applier.metrics import server
from support import shop

# What a process says of itself within seconds it says at once, and what is down is soon tried again.
pacing.CHOOSE_SECONDS = 0.2
breaker.LAST_PAUSE_SECONDS = 0.5
server.FRESH_SECONDS = 0.0

_signs = Path(os.environ["YEAR"])
applier = shop.applier


@applier.handler("numbered")
def apply(connection: psycopg.Connection[Any], command: Command) -> None:
    """Write the effect."""
    shop.write_witness(connection, command)


@applier.handler("bank")
def pay(connection: psycopg.Connection[Any], command: Command) -> None:
    """Write the effect, unless what it takes is down."""
    if (_signs / "bank").exists():
        raise ConnectionRefusedError("the bank does not answer")
    shop.write_witness(connection, command)


@applier.handler("letters", outside=True)
async def post(_: Command) -> None:
    """Take as long as the sign is there."""
    while (_signs / "letters").exists():
        await asyncio.sleep(0.01)


@applier.handler("stuck", outside=True)
def hang(_: Command) -> None:
    """Never return."""
    threading.Event().wait()
