"""The log of `inturn apply`: lines for people, or one JSON object a line for machines."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from inturn.applier.command import in_hand
from inturn.cli.terminal.output import escape

log = logging.getLogger("inturn")

#: What the applier adds to a record, in the order in which a line shows it.
_FIELDS = ("topics", "workers", "processes", "topic", "key", "seq", "seqs", "command", "attempt")


class _TextFormatter(logging.Formatter):
    """One line a record, whatever a key or an error holds."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = "".join(f" {name}={getattr(record, name)}" for name in _FIELDS if hasattr(record, name))
        line = escape(f"{at} {record.levelname.lower()} {record.getMessage()}{fields}")
        if record.exc_info:
            line += "".join(
                f"\n{escape(each)}" for each in self.formatException(record.exc_info).splitlines()
            )
        return line


class _OfCommand(logging.Filter):
    """Adds to what a handler logs which command it is at work on."""

    def filter(self, record: logging.LogRecord) -> bool:
        commands = in_hand.get()
        if commands and not hasattr(record, "topic"):
            first, last = commands[0], commands[-1]
            record.topic, record.key, record.attempt = first.topic, first.key, first.attempt
            if len(commands) == 1:
                record.seq = first.seq
            else:
                record.seqs = f"{first.seq}-{last.seq}"
        return True


#: They say at INFO what they do for every command.
_TALKATIVE = ("httpx2", "httpcore2", "asyncio")


def set_up(log_format: str, *, level: str = "info") -> None:
    """Send the log to stderr, that of handlers too.

    Args:
        log_format: `text` or `json`.
        level: debug, info, warning or error.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_json_formatter() if log_format == "json" else _TextFormatter())
    handler.addFilter(_OfCommand())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def as_json(message: str, **fields: Any) -> str:
    """Return a line of JSON like those of the log."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": at, "level": "INFO", "message": message, **fields})


def _json_formatter() -> logging.Formatter:
    return JsonFormatter(
        "{levelname}{message}",
        style="{",
        rename_fields={"levelname": "level", "timestamp": "time"},
        timestamp=True,
    )
