"""The protocol of a lease: for keys that are taken alone, and for those applied outside the database."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, LiteralString, NamedTuple, TypeAlias

from inturn.applier.calls.call import Call, all_as, first_as, nothing, statement, value
from inturn.applier.verdict import Requested

LeaseOutcome: TypeAlias = Literal["kept", "let go", "fenced"]


# Taken alone.


class ClaimedAlone(NamedTuple):
    """A key that was claimed alone; epoch is None when it was not after all, key too if none can be now."""

    key: str | None
    epoch: int | None
    ready_at: datetime
    server: str
    settings: str


def claim_alone(schema: str, topic: str, since: datetime | str, applier_id: str) -> Call[ClaimedAlone | None]:
    """Return the call that claims a key alone, unless the topic is refused: see _require_target."""
    return Call(
        statement(
            "SELECT key, epoch, ready_at, {server}, {settings}"
            " FROM {schema}._require_target({schema}._settings_of(%s)) t"
            " CROSS JOIN {schema}._claim_alone(%s, %s, %s) c",
            schema,
        ),
        (topic, topic, since, applier_id),
        first_as(ClaimedAlone),
    )


def hold_alone(schema: str, topic: str, key: str, epoch: int) -> Call[int]:
    """Return the call that locks a key that was claimed alone, to the end of the transaction.

    It says how many commands its turn takes at the most.
    """
    return Call(statement("SELECT {schema}._hold_alone(%s, %s, %s)", schema), (topic, key, epoch), value)


class Held(NamedTuple):
    """A key that is held by its lease, with one of its next commands.

    seq is None when it has none; name is None where commands up to seq became nothing.
    """

    applied_seq: int
    attempt: int
    seq: int | None
    name: str | None
    payload: str
    created_at: datetime


def hold_lease(schema: str, topic: str, key: str, epoch: int, max_commands: int) -> Call[list[Held]]:
    """Return the call that locks a key that was claimed alone, and reads its next commands.

    No row: they could not be merged, which has been recorded.
    """
    return Call(
        statement(
            "SELECT applied_seq, attempt, seq, name, payload::pg_catalog.text, created_at"
            " FROM {schema}._take_alone(%s, %s, %s, %s)",
            schema,
        ),
        (topic, key, epoch, max_commands),
        all_as(Held),
    )


def end_alone(schema: str, topic: str, key: str, epoch: int, done_seq: int) -> Call[str]:
    """Return the call that ends a turn that was taken alone; it says the outcome."""
    return Call(
        statement("SELECT {schema}._end_alone(%s, %s, %s, %s)", schema), (topic, key, epoch, done_seq), value
    )


def fail_alone(
    schema: str,
    topic: str,
    key: str,
    epoch: int,
    done_seq: int,
    error: str,
    asked: Requested,
    took: float | None,
) -> Call[str]:
    """Return the call that ends it when the command after done_seq failed; it says the outcome.

    took: for how many seconds the command was at work.
    """
    return Call(
        statement(
            "SELECT {schema}._end_alone(%s, %s, %s, %s,"
            " pg_catalog.concat_ws(E'\\n', %s::pg_catalog.text, v.problem), v.verdict, v.retry_after,"
            " pg_catalog.make_interval(secs => %s::double precision))"
            " FROM {schema}._read_verdict(%s, %s) v",
            schema,
        ),
        (topic, key, epoch, done_seq, error, took, asked.sqlstate, asked.detail),
        value,
    )


def lose_alone(
    schema: str, topic: str, key: str, epoch: int, error: str | None, *, is_clear: bool | None
) -> Call[str]:
    """Return the call that ends a lease of which nothing else can be recorded; it says the outcome.

    is_clear: None: inturn's own statements have lost against another transaction; see _lose_alone.
    """
    return Call(
        statement("SELECT {schema}._lose_alone(%s, %s, %s, %s, %s)", schema),
        (topic, key, epoch, error, is_clear),
        value,
    )


def blame_alone(schema: str, topic: str, key: str, epoch: int, error: str) -> Call[None]:
    """Return the call that notes that a turn has failed while it goes on."""
    return Call(
        statement("SELECT {schema}._blame_alone(%s, %s, %s, %s)", schema), (topic, key, epoch, error), nothing
    )


# Outside the database.


class Leased(NamedTuple):
    """A leased key with one of its commands. left: seconds of the lease; now: of the database's clock."""

    key: str
    epoch: int
    attempt: int
    left: float
    now: float
    seq: int
    name: str
    payload: str
    created_at: datetime


_LEASED: LiteralString = (
    "SELECT key, epoch, attempt, extract("
    "epoch FROM lease_until OPERATOR(pg_catalog.-) pg_catalog.clock_timestamp())::double precision,"
    " extract(epoch FROM pg_catalog.clock_timestamp())::double precision,"
    " seq, name, payload::pg_catalog.text, created_at "
)


def claim(
    schema: str, topic: str, max_keys: int, applier_id: str, octets: int | None = None
) -> Call[list[Leased]]:
    """Return the call that claims keys by lease.

    octets: only those whose next command is short, and as many as have so many together.
    """
    if octets is None:
        claimed = "FROM {schema}.claim(ARRAY[%s::pg_catalog.text], %s, NULL, %s)"
        return Call(statement(_LEASED + claimed, schema), (topic, max_keys, applier_id), all_as(Leased))
    short = "FROM {schema}._claim_small(%s, %s, %s, %s)"
    return Call(statement(_LEASED + short, schema), (topic, max_keys, applier_id, octets), all_as(Leased))


class Progress(NamedTuple):
    """What is to be recorded of a lease: that seq took effect (None: it is renewed), and if it ends."""

    topic: str
    key: str
    epoch: int
    seq: int | None
    release: bool


class Recorded(NamedTuple):
    """What became of a lease. seconds: how long it lasts from now on; None: it is over."""

    outcome: LeaseOutcome
    seconds: float | None


def record_progress(schema: str, steps: Sequence[Progress]) -> Call[list[Recorded]]:
    """Return the call that records steps of different leases; it says what became of each, in their order."""
    return Call(
        statement(
            "SELECT outcome, seconds FROM {schema}._record_progress("
            "%s::pg_catalog.text[], %s::pg_catalog.text[], %s::bigint[], %s::bigint[], %s::boolean[])"
            " ORDER BY place",
            schema,
        ),
        (
            [step.topic for step in steps],
            [step.key for step in steps],
            [step.epoch for step in steps],
            [step.seq for step in steps],
            [step.release for step in steps],
        ),
        all_as(Recorded),
    )


def fail(schema: str, topic: str, key: str, epoch: int, seq: int, error: str, asked: Requested) -> Call[str]:
    """Return the call that ends a lease whose next command failed; it says the outcome."""
    return Call(
        statement(
            "SELECT {schema}.fail(%s, %s, %s, %s, "
            "pg_catalog.concat_ws(E'\\n', %s::pg_catalog.text, v.problem),"
            " pg_catalog.jsonb_build_object('verdict', v.verdict, 'retry_after', v.retry_after))"
            " FROM {schema}._read_verdict(%s, %s) v",
            schema,
        ),
        (topic, key, epoch, seq, error, asked.sqlstate, asked.detail),
        value,
    )
