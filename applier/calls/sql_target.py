"""What the database does for a topic with a SQL target: claim, apply and record, in one statement."""

from __future__ import annotations

import json
from datetime import datetime
from typing import NamedTuple, TypeAlias

from inturn.applier.calls.call import Call, nothing, statement, value


class Down(NamedTuple):
    """A command that failed by what looks like an outage of what it needs, and is not recorded yet.

    from_seq: where its turn began; None for a key that was claimed alone. took: for how many
        seconds it was at work.
    """

    key: str
    epoch: int
    from_seq: int | None
    failed_seq: int
    error: str
    took: float


class Applied(NamedTuple):
    """What a batch did, as Batch has it; answered: a command failed for a reason of its own."""

    keys: int
    commands: int
    failures: int
    redo: bool
    hand: datetime
    skipped: int
    target_seconds: float
    lost: bool
    answered: bool
    outages: list[Down]


#: Names and what they are set to, in parallel: see _reset_session.
Settings: TypeAlias = tuple[list[str] | None, list[str] | None]


def apply_batch(
    schema: str, topic: str, since: datetime | str, max_keys: int, applier_id: str, settings: Settings
) -> Call[Applied]:
    """Return the call that applies a batch; where one was applied, the session's settings are put back."""
    return Call(
        statement(
            "SELECT keys, commands, failures, redo, hand, skipped,"
            " extract(epoch FROM target_time)::double precision, lost, answered, outages::pg_catalog.text,"
            # An expression of what is returned: it comes after the call in FROM.
            " CASE WHEN keys OPERATOR(pg_catalog.>) 0 THEN {schema}._reset_session(%s, %s) END"
            " FROM {schema}.apply_batch(%s, %s, %s, %s, false, true)",
            schema,
        ),
        (*settings, topic, since, max_keys, applier_id),
        lambda rows: Applied(*(*rows[0][:-2], _downs(rows[0][-2]))),
    )


def _downs(text: str) -> list[Down]:
    return [Down(**each) for each in json.loads(text)]


def fail_outages(schema: str, topic: str, downs: list[tuple[Down, bool]], applier_id: str) -> Call[int]:
    """Return the call that records outages, each with whether it counts; it says how many it skipped."""
    outages = [down._asdict() | {"counts": counts} for down, counts in downs]
    return Call(
        statement("SELECT {schema}._fail_outages(%s, %s::pg_catalog.jsonb, %s)", schema),
        (topic, json.dumps(outages, ensure_ascii=False), applier_id),
        value,
    )


def require_sql_topic(schema: str, topic: str) -> Call[None]:
    """Return the call that is refused (IT012) when the topic has no SQL target any more."""
    return Call(statement("SELECT {schema}._sql_topic(%s)", schema), (topic,), nothing)


class AppliedAlone(NamedTuple):
    """What the turn of a key that was claimed alone did."""

    commands: int
    failures: int
    skipped: int
    answered: bool
    outages: list[Down]


def apply_alone(
    schema: str, topic: str, key: str, epoch: int, most: int, settings: Settings
) -> Call[AppliedAlone]:
    """Return the call that takes a turn alone, of so many commands; the session's settings are put back."""
    return Call(
        statement(
            "SELECT commands, failures, skipped, answered, outage::pg_catalog.text,"
            " {schema}._reset_session(%s, %s) FROM {schema}._apply_alone(%s, %s, %s, true, %s)",
            schema,
        ),
        (*settings, topic, key, epoch, most),
        lambda rows: AppliedAlone(*(*rows[0][:-2], _downs(f"[{rows[0][-2] or ''}]"))),
    )
