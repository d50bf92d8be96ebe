"""What the database does for a topic with a SQL target: claim, apply and record, in one statement."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from inturn.applier.calls.call import Call, nothing, one_as, statement


class Applied(NamedTuple):
    """What a batch did, as Batch has it, and the session's settings after it."""

    keys: int
    commands: int
    failures: int
    redo: bool
    hand: datetime
    skipped: int
    target_seconds: float
    lost: bool
    settings: str


def apply_batch(
    schema: str, topic: str, since: datetime | str, max_keys: int, applier_id: str
) -> Call[Applied]:
    return Call(
        statement(
            "SELECT keys, commands, failures, redo, hand, skipped,"
            " extract(epoch FROM target_time)::double precision, lost, {settings}"
            " FROM {schema}.apply_batch(%s, %s, %s, %s, false)",
            schema,
        ),
        (topic, since, max_keys, applier_id),
        one_as(Applied),
    )


def require_sql_topic(schema: str, topic: str) -> Call[None]:
    """Return the call that is refused (IT012) when the topic has no SQL target any more."""
    return Call(statement("SELECT {schema}._sql_topic(%s)", schema), (topic,), nothing)


class AppliedAlone(NamedTuple):
    """What the turn of a key that was claimed alone did, and the session's settings after it."""

    commands: int
    failures: int
    skipped: int
    settings: str


def apply_alone(schema: str, topic: str, key: str, epoch: int) -> Call[AppliedAlone]:
    return Call(
        statement(
            "SELECT commands, failures, skipped, {settings} FROM {schema}._apply_alone(%s, %s, %s)", schema
        ),
        (topic, key, epoch),
        one_as(AppliedAlone),
    )
