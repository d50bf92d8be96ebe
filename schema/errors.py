"""The exceptions of inturn: one tree, each with the SQLSTATE that the database raises for it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar


class InturnError(Exception):
    """Base of every error that inturn raises.

    Attributes:
        message: what is wrong, in one line.
        hint: what to do about it; empty when there is nothing to add.
        topic, key, seq: what it concerns, as far as known.
    """

    sqlstate: ClassVar[str | None] = None
    #: What to do about it when the database does not say.
    default_hint: ClassVar[str] = ""

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        topic: str | None = None,
        key: str | None = None,
        seq: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.default_hint
        self.topic = topic
        self.key = key
        self.seq = seq

    def __str__(self) -> str:
        return f"{self.message}. {self.hint}" if self.hint else self.message


class UnknownTopic(InturnError):
    """The topic was never created."""

    sqlstate = "IT001"


class CommandRefused(InturnError):
    """The command cannot be appended as it is; nothing was."""


class KeyRefused(CommandRefused):
    """The key is NULL, empty or over 512 octets."""

    sqlstate = "IT002"


class PayloadRefused(CommandRefused):
    """The payload is over the topic's limit, or not JSON that PostgreSQL can store."""

    sqlstate = "IT003"


class NameRefused(CommandRefused):
    """The command's name is NULL, empty or over 128 octets."""

    sqlstate = "IT004"


class IdempotencyKeyRefused(CommandRefused):
    """The idempotency key is empty, over 512 octets, or begins with `inturn.`."""

    sqlstate = "IT005"


class ArraysDiffer(CommandRefused):
    """The arrays given to append_many differ in length."""

    sqlstate = "IT006"


class SeqRefused(CommandRefused):
    """A seq was given where the topic numbers by itself, or none where its callers number."""

    sqlstate = "IT007"


class IdempotencyKeyReused(CommandRefused):
    """The idempotency key was given before on the key, with another name or payload."""

    sqlstate = "IT008"


class TooManyPending(CommandRefused):
    """The key has as many commands pending as its topic's max_pending allows."""

    sqlstate = "IT009"


class SeqBelowFirst(CommandRefused):
    """A given seq is below the first of its topic."""

    sqlstate = "IT050"


class SeqTaken(CommandRefused):
    """A given seq is there already, with other content."""

    sqlstate = "IT051"


class SeqPassedOver(CommandRefused):
    """A given seq comes too late: an operator has skipped it."""

    sqlstate = "IT052"


class SeqTooFarAhead(CommandRefused):
    """A given seq is further ahead of the last applied one than the topic's max_ahead."""

    sqlstate = "IT053"


class SeqPruned(CommandRefused):
    """A given seq is done, and its command was pruned: whether it was this one can no longer be told."""

    sqlstate = "IT071"


class AppendConflict(InturnError):
    """The caller's snapshot is older than the key's last append: run the transaction again."""

    sqlstate = "40001"
    default_hint = "Roll back and run the transaction again"


class TopicExists(InturnError):
    """The topic exists already, with other settings."""

    sqlstate = "IT010"


class SettingRefused(InturnError):
    """A setting of a topic is out of range."""

    sqlstate = "IT011"


class TargetRefused(InturnError):
    """The topic's target cannot be called, or not in this way."""

    sqlstate = "IT012"


class OwnerChanged(InturnError):
    """The function of a target or merge rule has another owner than when it was set: it is not called."""

    sqlstate = "IT013"


class Fenced(InturnError):
    """The key has had another turn since this claim: this turn changed nothing."""

    sqlstate = "IT030"


class WrongIsolation(InturnError):
    """A turn was taken outside READ COMMITTED, or wait was called inside a transaction."""

    sqlstate = "IT031"


class OutOfTurn(InturnError):
    """An applier reported a command that is not the key's next, or not in the log."""

    sqlstate = "IT032"


class TopicNotGranted(InturnError):
    """The topic is granted to other callers, appliers or operators only."""

    sqlstate = "IT014"


class UnknownKey(InturnError):
    """The topic has no such key: nothing was ever committed on it."""

    sqlstate = "IT040"


class ActionRefused(InturnError):
    """What an operator asked for makes no sense in the state that the key or topic is in now."""

    sqlstate = "IT041"


class KeyBusy(InturnError):
    """Somebody else had the key in hand for as long as the operator was willing to wait."""

    sqlstate = "IT042"


class ReasonRequired(InturnError):
    """An operator's change of what takes effect was given no reason."""

    sqlstate = "IT043"


class OptionRefused(InturnError):
    """A list was asked for by a state or an order that does not exist."""

    sqlstate = "IT044"


class MergeRuleRefused(InturnError):
    """A merge rule has a name that is missing or stands for several, or an outcome that does not exist."""

    sqlstate = "IT060"


class MergeFunctionRefused(InturnError):
    """The function that a merge rule names cannot merge two commands."""

    sqlstate = "IT061"


class MergeRuleExists(InturnError):
    """The two names have another merge rule already."""

    sqlstate = "IT062"


class UnknownMergeRule(InturnError):
    """The topic has no merge rule for these two names."""

    sqlstate = "IT063"


class NotApplied(InturnError):
    """The key has not been applied as far as was waited for.

    Attributes:
        applied_seq: everything up to here has taken effect, or was skipped.
        state: of the key: idle, ready, retrying, leased, waiting, held or paused; or `topic paused`.
        since: since when, as far as that is known.
    """

    def __init__(
        self,
        message: str,
        *,
        applied_seq: int | None = None,
        state: str | None = None,
        since: datetime | None = None,
        **known: Any,
    ) -> None:
        super().__init__(message, **known)
        self.applied_seq = applied_seq
        self.state = state
        self.since = since


class WaitTimedOut(NotApplied):
    """The time to wait for a key is over. It may be applied later."""

    sqlstate = "IT065"
    default_hint = "Wait on, or ask an operator: inturn why KEY"


class KeyHeld(NotApplied):
    """The key stands still until an operator acts on it, so waiting is useless."""

    sqlstate = "IT066"
    default_hint = "An operator finds out why by: inturn why KEY"


class PruneRefused(InturnError):
    """Neither topic nor call says how long to keep what was applied, or the time is negative."""

    sqlstate = "IT070"


class NoPrivilege(InturnError):
    """The login may not create the schema, or anything in it."""


class StatementPooling(InturnError):
    """The database is reached through a pooler in statement mode, which has no transactions."""

    default_hint = "Set its pool_mode to transaction or session for this database, or connect to the server"


class SchemaMismatch(InturnError):
    """The schema in the database is not one that this version of inturn can serve."""


class CommandsPending(InturnError):
    """A downgrade was refused because commands have not been applied."""


class SchemaInUse(InturnError):
    """The schema cannot be changed now: something outside depends on it, or its tables are locked."""


class SchemaNameRefused(InturnError):
    """The name cannot be used for the schema."""


class TransactionNeeded(InturnError):
    """What has to be done wholly or not at all was asked for on a connection in autocommit."""


class RequestRefused(InturnError):
    """The request was not sent by an inturn applier, or was altered in transit."""


class SignatureRefused(RequestRefused):
    """The signature is missing, wrong or too old: the request must have no effect."""


class HeaderMissing(RequestRefused):
    """A header is missing that says which command the request is."""


class HeaderRefused(RequestRefused):
    """A header is there twice, or cannot be read."""


class BodyRefused(RequestRefused):
    """The body is not JSON."""


class SecretRefused(InturnError):
    """A secret for signatures is empty, or does not follow the Standard Webhooks convention."""


class NotInTransaction(InturnError):
    """accept was called outside a transaction, and would be committed without the effect."""


def _concrete(base: type[InturnError]) -> list[type[InturnError]]:
    return [base, *(found for child in base.__subclasses__() for found in _concrete(child))]


BY_SQLSTATE: dict[str, type[InturnError]] = {
    error.sqlstate: error for error in _concrete(InturnError) if error.sqlstate is not None
}


_PROTOCOL_VIOLATION = "08P01"


class _Diagnostic:
    """What both psycopg's Diagnostic and psycopg2's offer."""

    message_primary: str | None
    message_hint: str | None


def from_database(
    error: BaseException, *, topic: str | None = None, key: str | None = None
) -> InturnError | None:
    """Return the inturn error for a driver's error, or None when it is not one of ours.

    Args:
        error: a psycopg error, or another driver's that has a SQLSTATE in `sqlstate` or `pgcode`.
        topic, key: what was being appended, to be carried on the error.
    """
    sqlstate = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    kind = BY_SQLSTATE.get(sqlstate or "")
    if sqlstate == _PROTOCOL_VIOLATION and "statement pooling" in str(error):  # PgBouncer's words
        return StatementPooling("the pooler before the database is in statement mode, without transactions")
    if kind is None:
        return None
    diagnostic: _Diagnostic | None = getattr(error, "diag", None)
    message = getattr(diagnostic, "message_primary", None) or str(error)
    hint = getattr(diagnostic, "message_hint", None) or ""
    return kind(message, hint=hint, topic=topic, key=key)
