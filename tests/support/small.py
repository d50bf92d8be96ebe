"""An application in a process of little memory: handlers inside and outside that do nothing."""

from __future__ import annotations

import os
import resource
from typing import Any

import psycopg

from inturn.applier import Applier, Command

_BYTES = int(os.environ.get("SMALL_BYTES", "0"))
if _BYTES:
    resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))

applier = Applier()


@applier.handler("inside")
def inside(connection: psycopg.Connection[Any], command: Command) -> None: ...


@applier.handler("outside", outside=True)
async def outside(command: Command) -> None: ...
