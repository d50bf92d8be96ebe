"""Ways of applying in which failures are forced, in the words of docs/explanation/failures.md."""

from __future__ import annotations

from typing import Literal

#: Each with the topic that is applied so. CALL and lease clients have connections of their own.
HALF_OPEN = {
    "a SQL target": "sql",
    "a handler in Python": "inside",
    "a batch handler": "batches",
    "a handler outside": "plain",
    "a coroutine outside": "coroutine",
    "a post to a service": "http",
}
#: What a handler in Python is at while its time runs out, and which handlers outside take too long.
TOO_LONG_IN_PYTHON = ("a statement", "many statements", "no statement")
TOO_LONG_OUTSIDE: dict[str, Literal["plain", "async"]] = {
    "a handler outside": "plain",
    "a coroutine outside": "async",
}
#: What gets several commands of a key in a call, and the target that is called so.
TOO_LONG_IN_BATCHES = {"a batch handler": "python", "a SQL target for batches": "sql:bad.apply"}
#: Whether it is called, and takes longer than the session's statement_timeout: CALL knows none of a topic.
TOO_LONG_IN_SQL = {"a SQL target": False, "a SQL target under CALL": True}
#: Whether they are outside the database.
UNHANDLED = {"handlers in Python": False, "handlers outside": True}
#: What applies the commands, in a process that has a breaker.
OUTAGES: dict[str, Literal["inside", "batches", "plain", "coroutine", "http", "sql"]] = {
    "a handler in Python": "inside",
    "a batch handler": "batches",
    "a handler outside": "plain",
    "a coroutine outside": "coroutine",
    "a post to a service": "http",
    "a SQL target": "sql",
}
OUTAGES_UNDER_CALL = ("a SQL target under CALL",)
