"""The log of `inturn apply`: lines for people, or one JSON object a line for machines."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from inturn.cli.output import escape

log = logging.getLogger("inturn")

#: What the applier adds to a record, in the order in which a line shows it.
_FIELDS = ("topics", "workers", "processes", "topic", "key", "seq", "command", "attempt")


class _TextFormatter(logging.Formatter):
    """One line a record, whatever a key or an error holds."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = "".join(f" {name}={getattr(record, name)}" for name in _FIELDS if hasattr(record, name))
        line = escape(f"{at} {record.levelname.lower()} {record.getMessage()}{fields}")
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def set_up(log_format: str, *, quiet: bool = False) -> None:
    """Send the log of inturn to stderr, in the format `text` or `json`; quiet: warnings only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_json_formatter() if log_format == "json" else _TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    log.setLevel(logging.WARNING if quiet else logging.INFO)


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
