"""The table of the operators' actions: a row each, in the order of the help.

`inturn --help` reads it, so nothing here imports the database's driver at the top.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from inturn.cli.terminal.whole import BIGINT

if TYPE_CHECKING:
    from psycopg import Connection

    from inturn.cli.act.operator import Recorded


def _change(done: Recorded) -> str:
    before, after = done["before"]["state"], done["after"]["state"]
    return before if before == after else f"{before} -> {after}"


@dataclass(frozen=True, slots=True)
class Action:
    """An operator's action. Its command calls the SQL function of the same name, with `_` for `-`.

    Attributes:
        name: the command.
        line: its line in `inturn --help`.
        where: what makes the command. The default makes it from the rest of the row.
        help: its own help.
        example: the command lines below the help.
        parameters: its own options and arguments, besides KEY, --topic, --reason and the options of every
            action. The function gets them by name.
        reason_required: --reason has to be given.
        whole_topic: without KEY it acts on a whole topic, by NAME_topic.
        every: with --all it acts on many keys, by NAME_all. The words are those of the question, and of
            what is printed where nobody can answer: `Retry`, `retried`.
        prepare: turns what was typed into the function's arguments, where the database has to read it.
        says: what was done, from the row that was recorded; the key is printed before it.
    """

    name: str
    line: str
    where: str = "inturn.cli.act.command:make_command"
    help: str = ""
    example: str = ""
    parameters: tuple[Callable[..., Any], ...] = ()
    reason_required: bool = False
    whole_topic: bool = False
    every: tuple[str, str] | None = None
    prepare: Callable[[Connection[Any], dict[str, Any]], dict[str, Any]] | None = None
    says: Callable[[Recorded], str] = _change


def _seq_option(text: str) -> Callable[..., Any]:
    return click.option("--seq", type=BIGINT, metavar="N", required=True, help=text)


def _retried(done: Recorded) -> str:
    if done["before"]["state"] == "held" and "waiting_at" in done["before"]:
        from inturn.cli.terminal.key_text import to_paste

        without = to_paste(f"fill-gap --seq {done['seq']} --reason TEXT", done["key"], done["topic"])
        waits = f"it waits for command {done['seq']} once more"
        return f"{_change(done)}; {waits}. To go on without it: {without}"
    return f"{_change(done)}; command {done['seq']} will be tried again"


def _cancelled(done: Recorded) -> str:
    count, first = done["after"]["cancelled"], done["seq"]
    which = (
        f"command {first} is" if count == 1 else f"{count:,} commands, {first} to {first + count - 1}, are"
    )
    return f"{_change(done)}; {which} skipped"


def _read_until(connection: Connection[Any], typed: dict[str, Any]) -> dict[str, Any]:
    from inturn.cli.act.until import read_until

    return {**typed, "until": read_until(connection, typed["until"])}


def _paused(done: Recorded) -> str:
    from inturn.cli.terminal.rows import load_time

    until = load_time(done["after"].get("paused_until") or "infinity")
    ends = f"until {until:%Y-%m-%d %H:%M:%S} UTC" if until else "until it is resumed"
    return f"paused {ends}; appends go on"


ACTIONS = (
    Action(
        "retry",
        "Try a failed command again, now.",
        help="""
        Try a held or retrying key's failed command again, now.

        The command then has all its attempts again. Repair the cause first.

        A key held at a missing number waits for it once more; inturn fill-gap goes on
        without it.
        """,
        example="""
        inturn retry order-42
        inturn retry --all --error '%timed out%' --reason 'bank is back'
        """,
        every=("Retry", "retried"),
        says=_retried,
    ),
    Action(
        "skip",
        "Skip a key's next command.",
        help="""
        Skip a key's next command, for good.

        It stays in the log, marked as skipped, and never takes effect; the commands
        after it do. To have it take effect after all: inturn replay.
        """,
        example="""
        inturn skip order-42 --seq 17 --reason 'a test order, ticket 99'
        """,
        parameters=(_seq_option("The number of the command that you expect to be next."),),
        reason_required=True,
        says=lambda done: f"{_change(done)}; command {done['seq']} is skipped",
    ),
    Action(
        "fill-gap",
        "Skip a number that nobody appended.",
        help="""
        Skip a number that a key waits for, for good, because nobody will append it.

        The commands after it are applied, and a late append of the number is refused.
        Only in topics whose callers number; one number at a time.
        """,
        example="""
        inturn fill-gap order-42 --seq 17 --reason 'lost at A, ticket 99'
        """,
        parameters=(_seq_option("The number that you expect to be missing."),),
        reason_required=True,
        says=lambda done: f"{_change(done)}; missing command {done['seq']} is skipped",
    ),
    Action("amend", "Change a pending command.", where="inturn.cli.act.amend:amend"),
    Action(
        "replay",
        "Append an applied or skipped command again.",
        help="""
        Append an applied or skipped command again, with a new number at the end.

        The old number stays as it is. Each SEQ can be replayed once; to do it once
        more, replay the new number.
        """,
        example="""
        inturn replay order-42 17 --reason 'skipped by mistake'
        """,
        parameters=(click.argument("seq", type=BIGINT),),
        reason_required=True,
        says=lambda done: f"command {done['seq']} is appended again as {done['after']['seq']}",
    ),
    Action(
        "pause",
        "Pause a key or a topic.",
        help="""
        Pause a key; without KEY, the whole topic that --topic names.

        The current command is finished first. Appends go on, and nothing is lost:
        inturn resume continues in order.
        """,
        example="""
        inturn pause order-42 --reason 'looking into ticket 99'
        inturn pause --topic orders --until 30m
        inturn pause --topic orders --until 'tomorrow 06:00'
        """,
        parameters=(
            click.option(
                "--until",
                metavar="TIME",
                help="Go on by itself: after 30m, or at a time as PostgreSQL reads it.",
            ),
        ),
        whole_topic=True,
        prepare=_read_until,
        says=_paused,
    ),
    Action(
        "resume",
        "Resume a paused key or topic.",
        help="Let a paused key go on where it stood; without KEY, the topic that --topic names.",
        example="""
        inturn resume order-42
        inturn resume --topic orders
        """,
        whole_topic=True,
        says=lambda done: _change(done) if done["key"] else "resumed",
    ),
    Action(
        "cancel-rest",
        "Skip everything pending on a key.",
        help="""
        Skip everything that is pending on a key now, for good.

        What is appended later is applied as usual.
        """,
        example="""
        inturn cancel-rest order-42 --reason 'account closed, ticket 99'
        inturn cancel-rest --all --error '%no such account%' --reason 'ticket 99'
        """,
        reason_required=True,
        every=("Cancel all that is pending on", "cancelled"),
        says=_cancelled,
    ),
)
