"""Overloads of everything that the schema's bodies call, in a schema that names are looked up in first."""

from __future__ import annotations

import re

from support.database import Database

#: Where their calls are counted; a sequence, so that no rollback hides one.
COUNTER = "plants.calls"
_COMMENT_OR_TEXT = re.compile(r"--[^\n]*|'(?:[^']|'')*'")
_CALLED = re.compile(r"([a-z_][a-z0-9_]*)\s*\(")
_OPERATOR = re.compile(r"[+\-*/<>=~!@#%^&|`?]+")
#: What takes any number of anything: a plain function cannot, so some of it.
_SOME = ("text", "text, text", "text, integer", "text, bigint", "text, text, text", "text, bigint, bigint")


def names_in_bodies(database: Database) -> tuple[set[str], set[str]]:
    """Return the names of functions, and the operators, that occur in the bodies; and in what they build."""
    bodies = "\n".join(
        body
        for (body,) in database.execute(
            "SELECT prosrc FROM pg_proc WHERE pronamespace = 'inturn'::regnamespace"
        )
    )
    # What is built as text is called too: so texts are looked into.
    called = set(_CALLED.findall(re.sub(r"--[^\n]*", " ", bodies)))
    operators = set(_OPERATOR.findall(_COMMENT_OR_TEXT.sub(" ", bodies)))
    # LIKE, NOT LIKE and their likes are operators by another name.
    return called, operators | {"=", "<>", "~~", "!~~", "~~*", "||", "->>", "->"}


def plant(database: Database, called: set[str], operators: set[str]) -> None:
    """Plant them in public, with every signature that pg_catalog has; anybody may create there.

    Every session of the database finds public's before pg_catalog's. A call of one fails, and is counted.
    """
    signatures = database.execute(
        """
        SELECT p.proname, pg_get_function_identity_arguments(p.oid), pg_get_function_result(p.oid),
               pg_get_function_arguments(p.oid) ~ '"any"'
        FROM pg_proc p WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname = ANY (%s)
          AND NOT EXISTS (SELECT FROM unnest(p.proargtypes || p.prorettype) t (oid)
                          WHERE t.oid::regtype::text IN ('internal', 'cstring', 'trigger', 'event_trigger'))
        """,
        [sorted(called)],
    )
    statements = [
        "CREATE SCHEMA plants",
        f"CREATE SEQUENCE {COUNTER}",
        "GRANT CREATE ON SCHEMA public TO PUBLIC",
    ]
    for name, arguments, result, takes_any in signatures:
        variants = _SOME if takes_any else (arguments.replace(" ORDER BY ", ", "),)
        statements += [_function(name, each, result) for each in variants if '"any"' not in arguments or each]
    found = database.execute(
        """
        SELECT o.oprname, o.oprleft::regtype::text, o.oprright::regtype::text, o.oprresult::regtype::text
        FROM pg_operator o WHERE o.oprnamespace = 'pg_catalog'::regnamespace
          AND o.oprname = ANY (%s) AND o.oprkind = 'b' AND o.oprcode <> 0
        """,
        [sorted(operators)],
    )
    for number, (name, left, right, result) in enumerate(found):
        statements += [
            _function(f"planted_{number}", f"{left}, {right}", result),
            f"CREATE OPERATOR public.{name}"  # noqa: ISC004
            f" (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = public.planted_{number})",
        ]
    database.execute("; ".join(dict.fromkeys(statements)))
    database.execute(f"ALTER DATABASE {database.name} SET search_path = public, pg_catalog")


def _function(name: str, arguments: str, result: str) -> str:
    result = result if "record" not in result and "TABLE" not in result else "SETOF text"
    return (
        f'CREATE OR REPLACE FUNCTION public."{name}"({_types(arguments)}) RETURNS {result}'
        " LANGUAGE plpgsql SET search_path = pg_catalog AS"
        f" $body$BEGIN PERFORM nextval('{COUNTER}'); RAISE EXCEPTION 'PLANTED {name}({arguments})'; END$body$"
    )


def _types(arguments: str) -> str:
    """Return arguments without those that come back."""
    return ", ".join(part for part in re.split(r", ", arguments) if not part.startswith(("OUT ", "TABLE ")))


def times_called(database: Database) -> int:
    """Return how often a planted one was called."""
    return int(database.value(f"SELECT coalesce(pg_sequence_last_value('{COUNTER}'), 0)"))
