"""`inturn status`: the topics and the appliers, at a glance, or checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import click
import psycopg
from psycopg import Connection, sql

from inturn.cli.advice import program
from inturn.cli.database import Database, pass_database
from inturn.cli.exit_codes import ExitCode
from inturn.cli.look.sessions import abandoned_lines, down_topics, say_what_is_hidden
from inturn.cli.look.topics import no_topics, require_topic, say_hidden_topics
from inturn.cli.terminal.key_text import TOPIC, shown
from inturn.cli.terminal.output import (
    Column,
    age,
    echo_all,
    first_line,
    json_option,
    print_json,
    table_lines,
)
from inturn.cli.terminal.rows import Row, clock, fetch
from inturn.cli.terminal.spans import refuse_interval
from inturn.cli.terminal.watch import watch_lines, watch_option

_RECENT = timedelta(minutes=5)
_MANY = 10
_TOPICS = """
SELECT t.*, least(t.oldest_pending_at, t.arrived_at) <= clock_timestamp() - %s::interval AS too_old
FROM {}.topic_status(%s::text, %s) t
"""
_APPLIERS = """
SELECT a.*, {0}._fits(a.revision) AS fits, {0}._process_of(a.applier) AS process FROM {0}.list_appliers() a
"""


@dataclass(frozen=True)
class _Status:
    """What was found, and when."""

    topics: list[Row]
    appliers: list[Row]
    now: datetime


@click.command(
    epilog="""\b
Example:
  inturn status
  inturn status --check --older-than 10m || echo 'commands stand still'"""
)
@click.option("--topic", type=TOPIC, metavar="NAME", help="Only this topic and its appliers.")
@click.option("--check", is_flag=True, help="Exit with 9 if something is wrong; print nothing if not.")
@click.option(
    "--older-than",
    metavar="INTERVAL",
    help="With --check: also if a command has been pending this long: 90s, 10m.",
)
@watch_option
@json_option
@pass_database
def status(
    database: Database,
    /,
    *,
    topic: str | None,
    check: bool,
    older_than: str | None,
    watch: float | None,
    as_json: bool,
) -> int:
    """Summarize the topics, and the appliers and what each is doing.

    Keys are counted by state, except idle ones. pending counts the commands that are
    not applied; oldest is how long the oldest of them has waited. rate is the commands
    applied per second and failed the number of failures, both in the last five minutes.

    --check finds something wrong if a topic that is not paused has ready or retrying
    keys, or commands without a number, and no applier is alive; or if a topic's target
    does not answer.
    """
    _check_options(older_than=older_than, check=check, watch=watch, as_json=as_json)
    with database.connect() as connection:
        if topic is not None:
            require_topic(connection, database.schema, topic)
        if watch:
            return watch_lines(watch, lambda: _watched(_read(connection, database.schema, topic, None)))
        found = _read(connection, database.schema, topic, older_than)
        say_what_is_hidden(connection, database.schema, quiet=as_json or check)
        say_hidden_topics(connection, database.schema, topic, quiet=check)
    problems = list(_problems(found, older_than)) if check else []
    if as_json:
        more = {"problems": problems} if check else {}
        print_json({"topics": found.topics, "appliers": found.appliers, **more})
    elif check:
        echo_all(f"topic {shown(problem['topic'])}: {problem['says']}" for problem in problems)
    elif found.topics:
        echo_all(_lines(found))
    else:
        echo_all([no_topics()], err=True)
    return ExitCode.UNHEALTHY if problems else ExitCode.OK


def _check_options(*, older_than: str | None, check: bool, watch: float | None, as_json: bool) -> None:
    if older_than is not None and not check:
        raise click.UsageError("--older-than goes with --check.")
    if watch and (check or as_json):
        raise click.UsageError("--watch goes neither with --json nor with --check.")


def _read(connection: Connection[Any], schema: str, topic: str | None, older_than: str | None) -> _Status:
    def rows(query: str, *parameters: object) -> list[Row]:
        return fetch(connection, sql.SQL(query).format(sql.Identifier(schema)), parameters)

    try:
        topics = rows(_TOPICS, older_than, topic, _RECENT)
    except psycopg.DataError as error:
        raise refuse_interval(error, "--older-than", older_than) from None
    appliers = [applier for applier in rows(_APPLIERS) if topic is None or topic in applier["topics"]]
    for each in topics:
        each["applied_per_second"] = round(each["applied"] / _RECENT.total_seconds(), 3)
        if older_than is None:
            del each["too_old"]
    return _Status(topics, appliers, clock(connection))


def _problems(found: _Status, older_than: str | None) -> Iterator[Row]:
    """Yield what is wrong with each topic: a stable code, and a sentence."""
    serving = {
        topic
        for applier in found.appliers
        if applier["alive"] and applier["fits"]
        for topic in applier["topics"]
    }
    down = down_topics(found.appliers)
    for topic in found.topics:
        waits = _says_ready(topic) or (_says_arrived(topic, found.now) if _only_arrived(topic) else "")
        if waits and topic["paused_at"] is None and topic["topic"] not in serving:
            yield {
                "topic": topic["topic"],
                "problem": "no_applier",
                "says": f"{waits}, and no applier of it is alive",
            }
        if topic["topic"] in down:
            yield {
                "topic": topic["topic"],
                "problem": "target_down",
                "says": _says_down(down[topic["topic"]], found.now),
            }
        if topic.get("too_old"):
            oldest = min(at for at in (topic["oldest_pending_at"], topic["arrived_at"]) if at)
            waited = age((found.now - oldest).total_seconds())
            yield {
                "topic": topic["topic"],
                "problem": "too_old",
                "says": f"a command has been pending for {waited}, longer than {older_than}",
            }


def _says_down(report: Row, now: datetime) -> str:
    since = age((now - datetime.fromisoformat(report["since"])).total_seconds())
    return (
        f"its target has not answered for {since}; the key tried last was {shown(report['key'])}: "
        f"{first_line(report['error'])}"
    )


def _says_ready(topic: Row) -> str:
    keys = topic["ready"] + topic["retrying"]
    return f"{'1 key is' if keys == 1 else f'{keys:,} keys are'} ready or retrying" if keys else ""


def _only_arrived(topic: Row) -> bool:
    return bool(topic["arrived"]) and not topic["ready"] + topic["retrying"]


def _says_arrived(topic: Row, now: datetime) -> str:
    waited = age((now - topic["arrived_at"]).total_seconds())
    if topic["arrived"] == 1:
        return f"1 command that arrived {waited} ago has no number yet"
    return f"{topic['arrived']:,} commands that arrived have no number yet, the first for {waited}"


def _watched(found: _Status) -> tuple[datetime, list[str]]:
    return found.now, _lines(found) if found.topics else [no_topics()]


_STATES = ("held", "waiting", "retrying", "paused", "leased", "ready")
#: Has a column only where there are any.
_RARE = ("waiting", "leased")


def _lines(found: _Status) -> list[str]:
    # Where no applier is alive at all, the list of appliers says so.
    problems = list(_problems(found, None)) if any(each["alive"] for each in found.appliers) else []
    unserved = {problem["topic"] for problem in problems if problem["problem"] == "no_applier"}
    return [
        *_topic_lines(found.topics, unserved, found.now),
        *(f"topic {shown(problem['topic'])}: {problem['says']}" for problem in problems),
        "",
        *_applier_lines(found),
    ]


def _topic_lines(topics: list[Row], unserved: set[str], now: datetime) -> Iterator[str]:
    states = [state for state in _STATES if state not in _RARE or any(topic[state] for topic in topics)]
    yield from table_lines(
        [
            Column("topic", cut="middle", whole=True),
            *(Column(name, right=True) for name in states),
            *(Column(name, right=True) for name in ("pending", "oldest", "rate", "failed")),
        ],
        [_topic_row(topic, states, now) for topic in topics],
    )
    for topic in topics:
        if topic["paused_at"] is not None:
            left = topic["paused_until"] and age((topic["paused_until"] - now).total_seconds())
            until = f"for another {left}" if left else "until an operator resumes it"
            since = age((now - topic["paused_at"]).total_seconds())
            yield f"topic {shown(topic['topic'])}: paused for {since}, {until}"
        if topic["arrived"] and not (topic["topic"] in unserved and _only_arrived(topic)):
            yield f"topic {shown(topic['topic'])}: {_says_arrived(topic, now)}"


def _topic_row(topic: Row, states: list[str], now: datetime) -> list[str]:
    oldest = topic["oldest_pending_at"]
    return [
        topic["topic"],
        *(f"{topic[state]:,}" if topic[state] else "" for state in states),
        f"{topic['pending']:,}" + ("" if topic["exact"] else "+"),
        age((now - oldest).total_seconds()) if oldest else "",
        _rate(topic["applied_per_second"]) if topic["applied"] else "",
        f"{topic['failed']:,}" if topic["failed"] else "",
    ]


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}/s" if per_second >= _MANY else f"{per_second:.2g}/s"


def _applier_lines(found: _Status) -> Iterator[str]:
    alive = [applier for applier in found.appliers if applier["alive"]]
    gone = len(found.appliers) - len(alive)
    if not alive:
        from inturn.applier.targets import takes_handlers  # imports all that applies

        app = " --app MODULE:APPLIER" if all(takes_handlers(each["target"]) for each in found.topics) else ""
        yield f"no applier is alive. Start one with: {program()} apply{app}"
    else:
        yield from table_lines(
            [
                Column("applier", cut="middle"),
                Column("topics", cut="end"),
                Column("host", cut="middle"),
                Column("pid", right=True),
                Column("doing"),
                Column("for", right=True),
                Column("key", cut="middle", whole=True),
                Column("seq", right=True),
            ],
            [_applier_row(applier, found.now) for applier in alive],
            [f"waits for {applier['waits_for']}" if applier["waits_for"] else "" for applier in alive],
        )
    yield from abandoned_lines(alive)
    if gone:
        yield f"{gone} more seen in the last day {'is' if gone == 1 else 'are'} gone: see --json"


def _applier_row(applier: Row, now: datetime) -> list[str]:
    return [
        applier["applier"],
        ", ".join(applier["topics"]),
        applier["host"] or "",
        str(applier["pid"] or applier["backend_pid"] or ""),
        applier["doing"] + (f" {applier['leases']:,} keys" if applier["leases"] > 1 else ""),
        age((now - applier["since"]).total_seconds()) if applier["since"] else "",
        shown(applier["key"]) if applier["key"] is not None else "",
        str(applier["seq"] or ""),
    ]
