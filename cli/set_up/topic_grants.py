"""`inturn topic grant` and `revoke`: who may act on a topic, beyond having one of the roles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from psycopg import Connection, sql

from inturn.cli.act.operator import Operator, Recorded, operator_options_with, reason_option
from inturn.cli.database import Database, pass_database
from inturn.cli.terminal.key_text import TOPIC
from inturn.cli.terminal.rows import fetch

_ROLES = ("caller", "applier", "operator")


def _logins(verb: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that gives a command an option for every role."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for role in reversed(_ROLES):
            what = f"{verb} {role}; may be repeated."
            command = click.option(f"--{role}", f"as_{role}", metavar="LOGIN", multiple=True, help=what)(
                command
            )
        return command

    return decorate


@click.command(
    epilog="""\b
Example:
  inturn topic grant orders --caller shop_app --applier shop_worker""",
)
@click.argument("name", type=TOPIC)
@_logins("Let it act as")
@reason_option(required=False)
@operator_options_with("--wait", "topic")
@pass_database
def grant(database: Database, /, name: str, *, reason: str | None, operator: Operator, **logins: Any) -> None:
    """Let logins act on a topic, and nobody else of their role.

    A topic that nobody is granted as caller is open to every login with the role
    inturn_caller; likewise for appliers and operators. Run it as the schema's owner.
    """
    _change(database, "grant_topic", name, reason, operator, logins)


@click.command(
    epilog="""\b
Example:
  inturn topic revoke orders --caller shop_app --reason 'ticket 99'""",
)
@click.argument("name", type=TOPIC)
@_logins("Let it no longer act as")
@reason_option(required=False)
@operator_options_with("--wait", "topic")
@pass_database
def revoke(
    database: Database, /, name: str, *, reason: str | None, operator: Operator, **logins: Any
) -> None:
    """Take back what `inturn topic grant` gave.

    With the last grant of a role the topic is open to the whole role again.
    Run it as the schema's owner.
    """
    _change(database, "revoke_topic", name, reason, operator, logins)


def _change(
    database: Database,
    function: str,
    name: str,
    reason: str | None,
    operator: Operator,
    logins: dict[str, tuple[str, ...]],
) -> None:
    changes = [(role, login) for role in _ROLES for login in logins[f"as_{role}"]]
    if not changes:
        raise click.UsageError("Give a login: --caller, --applier or --operator.")
    with database.connect() as connection, connection.transaction():
        actions = [
            done
            for role, login in changes
            for done in operator.act(
                connection,
                database.schema,
                function,
                {"topic": name, "role": role, "login": login, "reason": reason},
            )
        ]
    operator.report(actions, _changed)


def _changed(done: Recorded) -> str:
    after = done["after"]
    if done["action"] == "grant":
        return f"granted to {after['login']} as {after['role']}"
    left = f", and open to every {after['role']} now" if after["open"] else ""
    return f"revoked from {done['before']['login']} as {after['role']}{left}"


def granted(connection: Connection[Any], schema: str, topic: str) -> list[tuple[str, str]]:
    """Return each role and who is granted the topic as that."""
    query = sql.SQL(
        "SELECT role, string_agg(login, ', ' ORDER BY login) AS logins FROM {}.topic_grant"
        " WHERE topic = %(topic)s GROUP BY role"
    ).format(sql.Identifier(schema))
    found = {row["role"]: row["logins"] for row in fetch(connection, query, {"topic": topic})}
    return [(role, found.get(role, "")) for role in _ROLES]
