"""Handlers of topics in which something is wrong, until the test says by a file that it is right.

Only processes of the tests' own import it: see alarms.
"""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import psycopg

from inturn.applier import Applier, Command, breaker, pacing

# What a process says of itself within seconds it says at once, and what is down is soon tried again.
pacing.CHOOSE_SECONDS = 0.2
breaker.LAST_PAUSE_SECONDS = 0.5

_folder = Path(os.environ["ALARMS"])
#: The handlers of all topics but those that `another` has.
applier, another = Applier(), Applier()


def _is_right(command: Command) -> bool:
    return (_folder / command.topic).exists()


def _do(_connection: psycopg.Connection[Any], _command: Command) -> None: ...


for _topic in ("well", "given", "hot"):
    applier.handler(_topic)(_do)
for _topic in ("alone", "alone-hot"):
    another.handler(_topic)(_do)


@applier.handler("held")
@applier.handler("failing")
def fail(_connection: psycopg.Connection[Any], command: Command) -> None:
    """Fail until it is right."""
    if not _is_right(command):
        raise ValueError("refused")


@applier.handler("stuck", outside=True)
def hang(command: Command) -> None:
    """Never return, unless it is right."""
    if not _is_right(command):
        threading.Event().wait()


@applier.handler("slow", outside=True)
@applier.handler("lost", outside=True)
async def wait(command: Command) -> None:
    """Return when it is right."""
    while not _is_right(command):
        await asyncio.sleep(0.01)
