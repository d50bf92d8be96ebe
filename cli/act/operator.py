"""How an operator acts on a key or a topic: who it is, how long it waits, or only to see what it would do."""

from __future__ import annotations

import functools
import getpass
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import click
from psycopg import Connection, sql

from inturn.cli.database import Database
from inturn.cli.errors import Failure
from inturn.cli.look.topics import say_hidden_topics
from inturn.cli.terminal.key_text import TOPIC, resolve, shown, to_paste
from inturn.cli.terminal.output import echo, escape, json_option, print_json
from inturn.cli.terminal.rows import fetch
from inturn.cli.terminal.seconds import Seconds
from inturn.schema.errors import UnknownKey

#: The longest that PostgreSQL takes, 24 days.
_LONGEST_TIMEOUT_MS = 2**31 - 1

#: What an action recorded: a row of operator_action.
Recorded = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Operator:
    """How an operator acts.

    Attributes:
        acting_as: whom the operator acts for; None: for nobody else.
        dry_run: do it, and roll it back.
        timeout: seconds to wait for whoever has the key in hand.
        as_json: print what was recorded as JSON.
    """

    acting_as: str | None
    dry_run: bool
    timeout: float
    as_json: bool

    def act(
        self, connection: Connection[Any], schema: str, function: str, arguments: Mapping[str, object]
    ) -> list[Recorded]:
        """Call one of the operators' functions, and return what it recorded.

        Args:
            connection: in autocommit.
            schema: where inturn is installed.
            function: its name.
            arguments: its arguments by name; a payload as text.

        Raises:
            psycopg.Error: refused; nothing was changed.
        """
        call = sql.SQL("SELECT * FROM {}.{}({})").format(
            sql.Identifier(schema),
            sql.Identifier(function),
            sql.SQL(", ").join(
                sql.SQL("{} => {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in arguments
            ),
        )
        settings = {
            "lock_timeout": f"{round(min(max(self.timeout * 1000, 1), _LONGEST_TIMEOUT_MS))}ms",
            f"{schema}.os_user": _os_user(),
            f"{schema}.acting_as": self.acting_as or "",
        }
        with connection.transaction(force_rollback=self.dry_run):
            for name, value in settings.items():
                connection.execute("SELECT set_config(%s, %s, true)", (name, value))
            return fetch(connection, call, arguments)

    def report(self, actions: list[Recorded], say: Callable[[Recorded], str]) -> None:
        """Print what was recorded: as JSON, or a line each: the key or the topic, and what `say` returns."""
        if self.as_json:
            print_json([{**done, "dry_run": self.dry_run} for done in actions])
            return
        for done in actions:
            dry = "dry run, nothing changed: " if self.dry_run else ""
            echo(f"{dry}{_place(done)}: {say(done)}")


def operator_options_with(wait: str, what: str = "key") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return what gives a command the options of every action; it gets them as `operator`.

    Args:
        wait: what the option is called that says how long to wait for whoever has it in hand.
        what: the action is on.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @click.option(
            "--as", "acting_as", metavar="WHO", help="Whom you act for; recorded beside your login."
        )
        @click.option("--dry-run", is_flag=True, help="Say what it would do, and change nothing.")
        @click.option(
            wait,
            "wait_seconds",
            type=Seconds(min=0),
            metavar="SECONDS",
            default=5.0,
            show_default=True,
            help=f"How long to wait for whoever has the {what} in hand.",
        )
        @json_option
        @functools.wraps(command)
        def with_operator(
            *args: Any,
            acting_as: str | None,
            dry_run: bool,
            wait_seconds: float,
            as_json: bool,
            **options: Any,
        ) -> Any:
            operator = Operator(acting_as, dry_run, wait_seconds, as_json)
            return command(*args, operator=operator, **options)

        return with_operator

    return decorate


operator_options = operator_options_with("--timeout")


def reason_option(*, required: bool) -> Callable[..., Any]:
    """Return the option --reason."""
    return click.option("--reason", metavar="TEXT", required=required, help="Why; it is recorded.")


topic_option = click.option(
    "--topic",
    type=TOPIC,
    metavar="NAME",
    help="The key's topic; only needed where several topics have the key.",
)


def find_key(
    connection: Connection[Any], database: Database, text: str, topic: str | None
) -> tuple[str, str]:
    """Return the topic and the key that were typed.

    Raises:
        UnknownKey: no topic has the key.
        Failure: several have it, and none was named.
    """
    key = resolve(connection, database.schema, text, topic)
    if topic is not None:
        return topic, key
    found = connection.execute(
        sql.SQL(
            "SELECT t.name FROM {schema}.topic t WHERE EXISTS ("
            "SELECT FROM {schema}.key_sequence c WHERE c.topic = t.name AND c.key = %s) ORDER BY 1"
        ).format(schema=sql.Identifier(database.schema)),
        (key,),
    ).fetchall()
    if not found:
        say_hidden_topics(connection, database.schema)
        raise _unknown(connection, database.schema, key)
    if len(found) > 1:
        names = ", ".join(escape(name) for (name,) in found)
        raise Failure(f"key {shown(key)} is in several topics: {names}", hint="Name one with --topic")
    return found[0][0], key


def _unknown(connection: Connection[Any], schema: str, key: str) -> UnknownKey:
    query = sql.SQL("SELECT topic FROM {}.arrived_key WHERE key = %s LIMIT 1").format(sql.Identifier(schema))
    if connection.execute(query, (key,)).rowcount:
        problem = f"the commands of key {shown(key)} have no number yet, so nothing can be done to it"
        return UnknownKey(problem, hint=f"What they wait for says: {to_paste('why', key)}", key=key)
    hint = f"Look for keys like it with: {to_paste('why', key)}"
    return UnknownKey(f"no topic has a key {shown(key)}", hint=hint, key=key)


def _place(done: Recorded) -> str:
    topic = done["topic"]
    return f"{topic} {shown(done['key'])}" if done["key"] else f"topic {topic}"


def _os_user() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # no such user in the system's list
        user = str(os.getuid())
    became = os.environ.get("SUDO_USER")
    return f"{user}@{socket.gethostname()}" + (f" (sudo by {became})" if became and became != user else "")
