"""The command of an operator's action, made from its row in the table."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import click

from inturn.cli.act.actions import ACTIONS, Action
from inturn.cli.act.many import Many, act_on_many, check_many, many_options
from inturn.cli.act.operator import (
    Operator,
    Recorded,
    find_key,
    operator_options,
    reason_option,
    topic_option,
)
from inturn.cli.database import Database, pass_database
from inturn.cli.look.topics import say_hidden_topics
from inturn.cli.terminal.key_text import KEY
from inturn.cli.terminal.output import echo


def make_command(name: str) -> click.Command:
    """Return the command of the action with this name."""
    action = next(action for action in ACTIONS if action.name == name)

    def run(
        database: Database,
        /,
        *,
        key: str | None,
        topic: str | None,
        operator: Operator,
        many: Many | None = None,
        **typed: Any,
    ) -> None:
        if many is not None:
            check_many(key, many)
        elif key is None and topic is None:
            raise click.UsageError("Give a KEY, or --topic for a whole topic.")
        done = _act(database, operator, action, key, topic, many, typed)
        if not done:
            echo("inturn: no such keys", err=True)
        operator.report(done, action.says)

    command: Callable[..., Any] = run
    for decorate in reversed(_parameters(action)):
        command = decorate(command)
    example = f"\b\nExample:\n{_indented(action.example)}"
    return click.command(name, help=action.help, epilog=example)(command)


def _parameters(action: Action) -> list[Callable[..., Any]]:
    """Return what gives the command its arguments and options, in the order of its help."""
    return [
        click.argument("key", type=KEY, required=not (action.whole_topic or action.every)),
        topic_option,
        *([many_options] if action.every else []),
        *action.parameters,
        reason_option(required=action.reason_required),
        operator_options,
        pass_database,
    ]


def _act(
    database: Database,
    operator: Operator,
    action: Action,
    key: str | None,
    topic: str | None,
    many: Many | None,
    typed: dict[str, Any],
) -> list[Recorded]:
    function = action.name.replace("-", "_")
    with database.connect() as connection:
        arguments = action.prepare(connection, typed) if action.prepare else typed
        if key is not None:
            found_topic, found_key = find_key(connection, database, key, topic)
            arguments = {"topic": found_topic, "key": found_key, **arguments}
        elif many is not None and action.every is not None:
            arguments = {"of_topic": topic, **arguments}
            say_hidden_topics(connection, database.schema, topic)
            return act_on_many(
                connection, database.schema, operator, f"{function}_all", arguments, many, action.every
            )
        else:
            function, arguments = f"{function}_topic", {"topic": topic, **arguments}
        return operator.act(connection, database.schema, function, arguments)


def _indented(example: str) -> str:
    return "\n".join(f"  {line}" for line in inspect.cleandoc(example).splitlines())
