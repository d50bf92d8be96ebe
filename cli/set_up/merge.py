"""`inturn topic merge`: what pending neighbours of a topic become."""

from __future__ import annotations

from typing import Any

import click
from psycopg import Connection, sql

from inturn.cli.advice import program
from inturn.cli.database import Database, pass_database
from inturn.cli.look.topics import require_topic
from inturn.cli.terminal.key_text import TOPIC, shown
from inturn.cli.terminal.output import Column, echo, json_option, print_json, print_table
from inturn.cli.terminal.rows import Row, fetch

_RULES = """
SELECT first_name AS first, then_name AS "then", becomes, created_at FROM {}.merge_rule
WHERE topic = %(topic)s ORDER BY first_name, then_name
"""


@click.command(
    short_help="Rules by which pending commands are merged.",
    epilog="""\b
Example:
  inturn topic merge orders insert delete nothing --dry-run
  inturn topic merge orders insert delete nothing
  inturn topic merge orders insert delete --remove
  inturn topic merge orders""",
)
@click.argument("name", type=TOPIC)
@click.argument("first", required=False)
@click.argument("then", required=False)
@click.argument("becomes", required=False, metavar="[nothing|last|sql:SCHEMA.FUNCTION]")
@click.option(
    "--dry-run", is_flag=True, help="Say what it would save of all that is pending; change nothing."
)
@click.option("--remove", is_flag=True, help="Take the rule of FIRST and THEN away.")
@click.option("--reason", metavar="TEXT", help="Recorded with the change.")
@json_option
@pass_database
def merge(
    database: Database,
    name: str,
    first: str | None,
    then: str | None,
    becomes: str | None,
    *,
    dry_run: bool,
    remove: bool,
    reason: str | None,
    as_json: bool,
) -> None:
    """Merge pending commands that follow each other, or list the rules for it.

    Where a command FIRST is pending and a command THEN follows it on the same key,
    they become nothing, the last one alone, or FIRST with the payload that a SQL
    function makes of both.
    """
    _check_usage((first, then, becomes), dry_run=dry_run, remove=remove)
    rule = {"first": first, "then": then, "becomes": becomes}
    with database.connect() as connection:
        require_topic(connection, database.schema, name)
        if dry_run:
            _preview(connection, database.schema, {"topic": name, **rule}, as_json=as_json)
        elif remove:
            _call(connection, database.schema, "remove_merge_rule", [name, first, then, reason])
            says = f"topic {name}: the rule of {first} and then {then} is removed"
            _report({**rule, "becomes": None, "changed": True}, says, as_json=as_json)
        elif becomes is not None:
            new = _call(connection, database.schema, "merge_rule", [name, first, then, becomes, reason])
            done = "from now on" if new else "as before"
            says = f"topic {name}: {first} and then {then} become {becomes}, {done}"
            _report({**rule, "changed": bool(new)}, says, as_json=as_json)
        else:
            rules = fetch(
                connection, sql.SQL(_RULES).format(sql.Identifier(database.schema)), {"topic": name}
            )
            _print_rules(name, rules, as_json=as_json)


def _check_usage(rule: tuple[str | None, str | None, str | None], *, dry_run: bool, remove: bool) -> None:
    given = sum(part is not None for part in rule)
    if dry_run and remove:
        raise click.UsageError("--dry-run and --remove exclude each other.")
    if remove and given != 2:  # noqa: PLR2004 - the two names
        raise click.UsageError("Give the two names of the rule to remove: FIRST THEN.")
    if not remove and given not in (0, 3):
        raise click.UsageError("Give a whole rule, FIRST THEN BECOMES, or none of it.")


def _call(connection: Connection[Any], schema: str, function: str, arguments: list[str | None]) -> Any:
    places = sql.SQL(", ").join([sql.Placeholder()] * len(arguments))
    query = sql.SQL("SELECT {}.{}({})").format(sql.Identifier(schema), sql.Identifier(function), places)
    row = connection.execute(query, arguments).fetchone()
    return row[0] if row else None


def _report(rule: Row, says: str, *, as_json: bool) -> None:
    if as_json:
        print_json(rule)
    else:
        echo(says)


def _print_rules(name: str, rules: list[Row], *, as_json: bool) -> None:
    if as_json:
        print_json(rules)
    elif rules:
        columns = [Column("first"), Column("then"), Column("becomes", cut="middle", whole=True)]
        print_table(columns, [[rule["first"], rule["then"], rule["becomes"]] for rule in rules])
    else:
        echo(
            f"inturn: topic {name} merges nothing. "
            f"Set a rule with: {program()} topic merge {shown(name)} FIRST THEN BECOMES",
            err=True,
        )


def _preview(connection: Connection[Any], schema: str, rule: Row, *, as_json: bool) -> None:
    query = sql.SQL("SELECT * FROM {}.merge_preview(%(topic)s, %(first)s, %(then)s, %(becomes)s)")
    *rules, whole = fetch(connection, query.format(sql.Identifier(schema)), rule)
    saved = whole["pending"] - whole["remaining"]
    if as_json:
        found = [{"rule": row["rule"], "keys": row["keys"], "merged": row["merged"]} for row in rules]
        print_json(
            {**{key: whole[key] for key in ("keys", "merged", "pending", "remaining")}, "rules": found}
        )
        return
    if rules:
        columns = [
            Column("rule", cut="middle", whole=True),
            Column("keys", right=True),
            Column("merged", right=True),
        ]
        print_table(columns, [[row["rule"], f"{row['keys']:,}", f"{row['merged']:,}"] for row in rules])
        echo()
    share = f" ({saved / whole['pending']:.0%})" if whole["pending"] else ""
    echo(
        f"{whole['pending']:,} commands are pending, {whole['remaining']:,} would be applied: "
        f"{saved:,} fewer{share}."
    )
    echo("Nothing was changed.")
