"""How a handler's exception is written into the database: whole, bounded, and always storable."""

from __future__ import annotations

import logging
import traceback
from contextlib import suppress
from types import TracebackType

import psycopg

from inturn.applier.command import ClaimedCommand
from inturn.applier.process.failure_log import FAILURES
from inturn.applier.verdict import Requested, Verdict, asked
from inturn.schema.advice import one_line

#: The most characters of an error that are kept; the database cuts at the same length.
MAX_ERROR_CHARACTERS = 8000

_SUMMARY_CHARACTERS = 300


def describe(error: BaseException) -> str:
    """Return a handler's exception as text: a line that says what, then the traceback with all causes.

    What a handler asked for is its reason, then the traceback of the error behind it, if one is.
    The text holds no NUL and no lone surrogate, which PostgreSQL refuses, and at most
    MAX_ERROR_CHARACTERS; a longer one loses its middle.
    """
    if isinstance(error, Verdict):
        behind = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        text = storable(error.reason)
        if behind is not None:
            text += f"\n\n{_traced(behind, behind.__traceback__)}"
    elif isinstance(error, psycopg.Error) and asked(error).sqlstate:
        text = storable(
            "\n".join(
                filter(
                    None,
                    [
                        error.diag.message_primary,
                        error.diag.message_detail and f"DETAIL: {error.diag.message_detail}",
                        error.diag.message_hint and f"HINT: {error.diag.message_hint}",
                    ],
                )
            )
        )
    else:
        # The first frame is the applier's own.
        text = _traced(error, error.__traceback__ and error.__traceback__.tb_next)
    return _cut(text)


def _traced(error: BaseException, frames: TracebackType | None) -> str:
    lines = traceback.TracebackException(type(error), error, frames)
    said = "".join(lines.format_exception_only()).strip().partition("\n")[0]
    summary = storable(said.removeprefix(f"{type(error).__module__}."))[:_SUMMARY_CHARACTERS]
    return f"{summary}\n\n{storable(''.join(lines.format()).strip())}"


def _cut(text: str) -> str:
    if len(text) <= MAX_ERROR_CHARACTERS:
        return text
    left_out = f"\n[... {len(text) - MAX_ERROR_CHARACTERS} characters left out ...]\n"
    tail = (MAX_ERROR_CHARACTERS - len(left_out)) // 2
    head = MAX_ERROR_CHARACTERS - len(left_out) - tail
    return text[:head] + left_out + text[-tail:]


def on_one_line(error: BaseException) -> str:
    """Return what an error says, on one line that is not too long; its kind, where it cannot say anything."""
    said = ""
    with suppress(Exception):  # a handler's own may do anything when it is asked
        said = one_line(str(error)[: 10 * _SUMMARY_CHARACTERS])[:_SUMMARY_CHARACTERS]
    return said or type(error).__name__


def storable(text: str) -> str:
    """Return text without NUL and lone surrogates, which PostgreSQL refuses."""
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def encodable(text: str, info: psycopg.ConnectionInfo) -> str:
    """Return text that a database can store in its own encoding: where that is not UTF-8, as ASCII."""
    if info.parameter_status("server_encoding") == "UTF8":
        return text
    return text.encode("ascii", "backslashreplace").decode("ascii")


def log_failure(order: ClaimedCommand, error: str, asks: Requested, outcome: str, *, by: str = "") -> None:
    """Log the failure of a command, and what becomes of it; of many equal ones, how many there are.

    Args:
        error: its first line is logged.
        asks: what was asked for.
        outcome: what the database has recorded.
        by: by whom it was asked for, ` by its handler`; empty where it was a service.
    """
    what = {
        "skipped": "command failed for the last time and was skipped",
        "cancelled": "command failed for the last time and was skipped with all that was pending",
        "held": "command failed, its key is held",
    }.get(outcome, "command failed")
    level = logging.WARNING
    # The author of a handler knows what it asks for; a key that stands still is news.
    if asks.skip:
        what, level = "command skipped by its handler", logging.INFO
    elif asks.hold:
        what = f"key held{by}"
    elif asks.sqlstate and not asks.outage and outcome == "retrying":
        what, level = f"command put off{by}", logging.INFO
    FAILURES.log(
        level,
        what,
        error,
        {
            "topic": order.topic,
            "key": order.key,
            "seq": order.seq,
            "command": order.name,
            "attempt": order.attempt,
        },
    )
