"""The callers' side: append commands in your own transaction, and wait for them, by psycopg or SQLAlchemy."""

from inturn.outbox.appending import (
    append,
    append_async,
    append_many,
    append_many_async,
)
from inturn.outbox.one_wait import Waited
from inturn.outbox.statement import NewCommand
from inturn.outbox.waiting import wait, wait_async
from inturn.schema.errors import (
    AppendConflict,
    CommandRefused,
    IdempotencyKeyRefused,
    IdempotencyKeyReused,
    InturnError,
    KeyHeld,
    KeyRefused,
    NameRefused,
    NotApplied,
    PayloadRefused,
    SeqBelowFirst,
    SeqPassedOver,
    SeqRefused,
    SeqTaken,
    SeqTooFarAhead,
    TooManyPending,
    UnknownKey,
    UnknownTopic,
    WaitTimedOut,
    WrongIsolation,
)

__all__ = [
    "AppendConflict",
    "CommandRefused",
    "IdempotencyKeyRefused",
    "IdempotencyKeyReused",
    "InturnError",
    "KeyHeld",
    "KeyRefused",
    "NameRefused",
    "NewCommand",
    "NotApplied",
    "PayloadRefused",
    "SeqBelowFirst",
    "SeqPassedOver",
    "SeqRefused",
    "SeqTaken",
    "SeqTooFarAhead",
    "TooManyPending",
    "UnknownKey",
    "UnknownTopic",
    "WaitTimedOut",
    "Waited",
    "WrongIsolation",
    "append",
    "append_async",
    "append_many",
    "append_many_async",
    "wait",
    "wait_async",
]
