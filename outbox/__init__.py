"""The callers' side: append commands in your own transaction, by psycopg or SQLAlchemy."""

from inturn.outbox.appending import (
    append,
    append_async,
    append_many,
    append_many_async,
)
from inturn.outbox.statement import NewCommand
from inturn.schema.errors import (
    AppendConflict,
    CommandRefused,
    IdempotencyKeyRefused,
    InturnError,
    KeyRefused,
    NameRefused,
    PayloadRefused,
    UnknownTopic,
)

__all__ = [
    "AppendConflict",
    "CommandRefused",
    "IdempotencyKeyRefused",
    "InturnError",
    "KeyRefused",
    "NameRefused",
    "NewCommand",
    "PayloadRefused",
    "UnknownTopic",
    "append",
    "append_async",
    "append_many",
    "append_many_async",
]
