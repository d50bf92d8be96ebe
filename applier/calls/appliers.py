"""Who applies which topics, where a pass begins, and when the next key is ready."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, LiteralString, NamedTuple

from psycopg import sql
from psycopg.types.json import Jsonb

from inturn.applier.calls.call import Call, all_as, nothing, one_as, seconds, statement, value


class TopicRow(NamedTuple):
    """What an applier has to know of a topic.

    Attributes:
        timeout: in seconds; None: there is none.
        merges: it has merge rules, or had some.
    """

    name: str
    target: str
    max_in_flight: int
    timeout: float | None
    merges: bool


def list_topics(schema: str, named: Sequence[str]) -> Call[list[TopicRow]]:
    """Return the call that lists the topics that the session may apply.

    named: IT014 is raised when one of these is granted to other appliers only.
    """
    return Call(
        statement(
            "SELECT name, target, max_in_flight, timeout, merges"
            " FROM {schema}._list_topics(%s) ORDER BY name",
            schema,
        ),
        (list(named),),
        all_as(TopicRow),
    )


def list_arrival_topics(schema: str, topics: Sequence[str]) -> Call[list[str]]:
    return Call(
        statement("SELECT {schema}._arrival_topics(%s)", schema),
        (list(topics),),
        value,
    )


class Process(NamedTuple):
    """Where an applier runs: its machine and process, and the revision of the schema that it knows."""

    host: str
    pid: int
    revision: str


class Announced(NamedTuple):
    """What the database says to an applier that announces itself.

    Attributes:
        careful: how many keys of each of its topics are taken alone at first; None: that was not asked.
        now: its time.
    """

    careful: list[int] | None
    now: datetime


#: Behind a pooler the client is told another backend than the one that it has.
_SAY: LiteralString = (
    "pg_catalog.clock_timestamp(), {schema}.announce_applier(%s, %s::pg_catalog.text[], %s, %s, %s,"
    " %s::integer OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid(), %s, %s)"
)
_ASK: LiteralString = (
    "{schema}._note_careful(%s, %s, c.careful)"
    " FROM (SELECT {schema}._careful_keys(%s, %s, %s) AS careful OFFSET 0) c"
)


def announce_applier(
    schema: str,
    applier_id: str,
    topics: list[str],
    process: Process,
    backend_pid: int,
    down: dict[str, Any],
    abandoned: int,
    most: int | None = None,
) -> Call[Announced]:
    """Return the call that announces an applier.

    Args:
        backend_pid: that of the session, as the driver knows it.
        down: which of the topics have a target that is down; see breaker.reports.
        abandoned: how many handlers were.
        most: ask, before it is announced, how many keys are taken alone at first: so many where another
            applier may have died of one, and note that. In one statement: who dies in between would have
            noted that death.
    """
    says = (applier_id, topics, *process, backend_pid, Jsonb(down), abandoned)
    asks = () if most is None else (applier_id, topics, topics, applier_id, most)
    return Call(
        statement(f"SELECT NULL, {_SAY}" if most is None else f"SELECT c.careful, {_SAY}, {_ASK}", schema),
        (*says, *asks),
        lambda rows: Announced(*rows[0][:2]),
    )


class LeftSession(NamedTuple):
    """A session of an applier that still exists.

    Attributes:
        seen_at: when the applier announced itself last, on this session.
        seconds: for how long the session has been there.
    """

    applier: str
    topics: list[str]
    pid: int
    backend_pid: int
    backend_start: datetime
    seen_at: datetime
    seconds: float


def list_sessions(schema: str, host: str) -> Call[list[LeftSession]]:
    """Return the call that lists the sessions of a host's appliers that still exist."""
    return Call(statement("SELECT * FROM {schema}._list_sessions(%s)", schema), (host,), all_as(LeftSession))


def note_careful(schema: str, applier_id: str, topics: list[str]) -> Call[None]:
    """Return the call that notes the topics whose next keys an applier takes alone."""
    careful = [1] * len(topics)
    return Call(
        statement("SELECT {schema}._note_careful(%s, %s, %s)", schema), (applier_id, topics, careful), nothing
    )


def end_applier(schema: str, applier_id: str) -> Call[None]:
    """Return the call that notes that an applier has ended as it should."""
    return Call(statement("SELECT {schema}._end_applier(%s)", schema), (applier_id,), nothing)


def has_others(schema: str, topic: str, applier_id: str) -> Call[bool]:
    """Return the call that says whether an applier of another process serves the topic."""
    return Call(
        statement("SELECT {schema}._has_others(%s, %s)", schema),
        (topic, applier_id),
        value,
    )


class Pass(NamedTuple):
    """What a pass over topics found; see _begin_saved_pass.

    Attributes:
        found: the topics with ready keys, the one whose key has been ready the longest first.
        starts: of each, where the claims begin.
        due: seconds to when a key of another topic is ready; None: none is.
        state: to be given to the next pass.
    """

    found: list[str]
    starts: list[str]
    due: float | None
    looked_at: str
    safe_at: str
    state: str


def begin_pass(schema: str, topics: Sequence[str], last: str | None) -> Call[Pass]:
    """Return the call that begins a pass. last: the state of the last one; None: look at everything."""
    return Call(
        statement(
            # Times as text: one of them may be -infinity, which Python has no datetime for.
            "SELECT p.found, p.starts::pg_catalog.text[],"
            " extract(epoch FROM p.due OPERATOR(pg_catalog.-) pg_catalog.clock_timestamp()),"
            " p.looked_at::pg_catalog.text, p.safe_at::pg_catalog.text, p::pg_catalog.text"
            " FROM {schema}._begin_saved_pass(%s, %s::{schema}._pass, true) p",
            schema,
        ),
        (topics, last),
        one_as(Pass),
    )


def spread_out(schema: str, topic: str, since: str, width: int) -> Call[str]:
    """Return the call that says where a worker among many begins in a topic; see _spread_out."""
    return Call(
        statement("SELECT {schema}._spread_out(%s, %s, %s)::pg_catalog.text", schema),
        (topic, since, width),
        value,
    )


def announce_sleep(schema: str, topics: list[str]) -> Call[datetime]:
    """Return the call that has appends notify this process for a while; it says the database's time."""
    return Call(
        statement("SELECT pg_catalog.clock_timestamp(), {schema}.announce_sleep(%s)", schema),
        (topics,),
        value,
    )


def next_ready(schema: str, topics: list[str], since: datetime | str) -> Call[float | None]:
    """Return the call that says in how many seconds a key of these topics is ready; None: none is due."""
    return Call(
        statement(
            "SELECT extract(epoch FROM {schema}.next_ready(%s, %s)"
            " OPERATOR(pg_catalog.-) pg_catalog.clock_timestamp())",
            schema,
        ),
        (topics, since),
        seconds,
    )


class Suspects(NamedTuple):
    """The suspects (keys that an applier was lost with) that were put off; see _next_suspect.

    Attributes:
        looked_at: to be given to the next call.
        due: seconds to when one is ready; None: none is.
    """

    looked_at: str
    due: float | None


def next_suspect(schema: str, topics: Sequence[str], since: str | None, began_at: str) -> Call[Suspects]:
    """Return the call that says whether a drain has to go on for a key that was put off.

    Args:
        since: what was looked at before the last claim that found nothing; None: nothing was.
        began_at: when the drain began.
    """
    return Call(
        statement(
            "SELECT looked_at::pg_catalog.text,"
            " extract(epoch FROM due OPERATOR(pg_catalog.-) pg_catalog.clock_timestamp())::double precision"
            " FROM {schema}._next_suspect(%s::pg_catalog.text[], %s, %s)",
            schema,
        ),
        (list(topics), since, began_at),
        one_as(Suspects),
    )


def listen(schema: str) -> sql.Composed:
    """Return the statement after which the session is notified."""
    return sql.SQL("LISTEN {}").format(sql.Identifier(f"{schema}.ready"))


def prune_idle(schema: str) -> Call[bool]:
    """Return the call that prunes one batch of a topic that is due; it says whether there was one."""
    return Call(statement("SELECT {schema}._prune_idle()", schema), (), value)


def pending_commands(schema: str, topics: list[str]) -> Call[int]:
    return Call(statement("SELECT {schema}.pending_commands(%s)", schema), (topics,), value)


def count_held(schema: str, topics: list[str]) -> Call[int]:
    return Call(
        statement("SELECT {schema}._count_held(%s)", schema),
        (topics,),
        value,
    )
