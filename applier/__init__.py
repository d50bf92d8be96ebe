"""The appliers' side: handlers in Python, and the workers that apply commands in turn."""

from inturn.applier.breaker import TargetDown
from inturn.applier.command import Command
from inturn.applier.fleet import Fleet, Outcome
from inturn.applier.handlers import (
    AnswerRefused,
    Applier,
    BatchHandler,
    Handler,
    HandlerDidNotRun,
    NoHandler,
    OutsideHandler,
)
from inturn.applier.inside.batch import Batch
from inturn.applier.inside.hand import TooManyAbandoned
from inturn.applier.inside.python.turn import HandlerBrokeTransaction
from inturn.applier.outside.effect import Timeouts
from inturn.applier.process.threads import NoThread
from inturn.applier.process.totals import Totals, WorkerEnded
from inturn.applier.verdict import Hold, Outage, Retry, Skip, Verdict
from inturn.schema.errors import (
    InturnError,
    SchemaMismatch,
    SchemaNameRefused,
    StatementPooling,
    TargetRefused,
    UnknownTopic,
)

__all__ = [
    "AnswerRefused",
    "Applier",
    "Batch",
    "BatchHandler",
    "Command",
    "Fleet",
    "Handler",
    "HandlerBrokeTransaction",
    "HandlerDidNotRun",
    "Hold",
    "InturnError",
    "NoHandler",
    "NoThread",
    "Outage",
    "Outcome",
    "OutsideHandler",
    "Retry",
    "SchemaMismatch",
    "SchemaNameRefused",
    "Skip",
    "StatementPooling",
    "TargetDown",
    "TargetRefused",
    "Timeouts",
    "TooManyAbandoned",
    "Totals",
    "UnknownTopic",
    "Verdict",
    "WorkerEnded",
]
