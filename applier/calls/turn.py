"""The protocol of a turn in one transaction: claim, apply, finish or fail."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from inturn.applier.calls.call import Call, all_as, nothing, statement, value
from inturn.applier.verdict import Requested


class Claimed(NamedTuple):
    """A claimed key with one of its commands.

    seq is None when it has none; name is None where commands up to seq were merged into nothing.
    settings: the session's, in the first row.
    """

    key: str
    applied_seq: int
    epoch: int
    attempt: int
    ready_at: datetime
    seq: int | None
    name: str | None
    payload: str
    created_at: datetime
    lost: bool
    settings: str


def claim_commands(schema: str, topic: str, since: datetime | str, max_keys: int) -> Call[list[Claimed]]:
    return Call(
        statement(
            "SELECT key, applied_seq, epoch, attempt, ready_at, seq, name, payload::pg_catalog.text,"
            # Once, not for every row: a thousand of them cost more than the claim.
            " created_at, lost, CASE WHEN place OPERATOR(pg_catalog.=) 1 THEN (SELECT {settings}) END"
            " FROM {schema}.claim_commands(%s, %s, %s) WITH ORDINALITY c (key, applied_seq, epoch, attempt,"
            " ready_at, seq, name, payload, created_at, lost, place)",
            schema,
        ),
        (topic, since, max_keys),
        all_as(Claimed),
    )


def check_effects(schema: str) -> Call[None]:
    return Call(statement("SELECT {schema}._check_effects()", schema), (), nothing)


class Done(NamedTuple):
    """How far a turn came: its commands from first_seq to done_seq took effect."""

    key: str
    epoch: int
    first_seq: int
    done_seq: int


def finish(schema: str, topic: str, turns: Sequence[Done], applier_id: str) -> Call[None]:
    return Call(
        statement(
            "SELECT {schema}.finish(%s, %s::pg_catalog.text[], %s::bigint[], %s::bigint[], %s::bigint[], %s)",
            schema,
        ),
        (
            topic,
            [turn.key for turn in turns],
            [turn.epoch for turn in turns],
            [turn.first_seq for turn in turns],
            [turn.done_seq for turn in turns],
            applier_id,
        ),
        nothing,
    )


def fail(
    schema: str,
    topic: str,
    turn: Done,
    failed_seq: int,
    error: str,
    asked: Requested,
    applier_id: str,
    took: float | None,
) -> Call[str]:
    """Return the call that ends a turn of which a command failed; it says the outcome.

    took: for how many seconds the command was at work.
    """
    return Call(
        statement(
            "SELECT {schema}.fail(%s, %s, %s, %s, %s, "
            "pg_catalog.concat_ws(E'\\n', %s::pg_catalog.text, v.problem), %s,"
            " v.verdict, v.retry_after, pg_catalog.make_interval(secs => %s::double precision))"
            " FROM {schema}._read_verdict(%s, %s) v",
            schema,
        ),
        (
            *(topic, turn.key, turn.epoch, turn.first_seq, failed_seq, error, applier_id),
            *(took, asked.sqlstate, asked.detail),
        ),
        value,
    )


def count_skipped(schema: str, topic: str, key: str, seq: int, epoch: int) -> Call[int]:
    """Return the call that says how many commands a turn skipped, from seq on."""
    return Call(
        statement("SELECT {schema}._count_skipped(%s, %s, %s, %s)", schema),
        (topic, key, seq, epoch),
        value,
    )


def took_long(schema: str, topic: str, keys: list[str], epochs: list[int], attempts: list[int]) -> Call[bool]:
    """Ask whether one of these keys is being tried again and its last attempt took long."""
    return Call(
        statement("SELECT {schema}._took_long(%s, %s, %s, %s)", schema),
        (topic, keys, epochs, attempts),
        value,
    )


def keep_alone(schema: str, topic: str, key: str, epoch: int) -> Call[None]:
    """Return the call after which a key whose failure was just recorded is taken alone."""
    return Call(statement("SELECT {schema}._keep_alone(%s, %s, %s)", schema), (topic, key, epoch), nothing)


def lock_ticket(schema: str, topic: str, key: str, epoch: int) -> Call[bool]:
    """Return the call that locks a key's ticket once more; it says whether it is there as it was."""
    return Call(
        statement("SELECT {schema}._lock_ticket(%s, %s, %s)", schema),
        (topic, key, epoch),
        value,
    )
