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
    SeqBelowFirst,
    SeqPassedOver,
    SeqRefused,
    SeqTaken,
    SeqTooFarAhead,
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
    "SeqBelowFirst",
    "SeqPassedOver",
    "SeqRefused",
    "SeqTaken",
    "SeqTooFarAhead",
    "UnknownTopic",
    "append",
    "append_async",
    "append_many",
    "append_many_async",
]
