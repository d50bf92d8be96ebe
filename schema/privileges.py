"""Roles and privileges: what they are, and how they come to be what sql/grants.sql says."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

import psycopg

from inturn.schema import acls, row_security
from inturn.schema.source import (
    created_names,
    grants_script,
    receiver_source,
    rename,
    roles_script,
    script,
    statements,
)
from inturn.schema.strangers import Ask

_logger = logging.getLogger(__name__)
_GRANT = re.compile(
    r"GRANT (?P<privileges>[A-Z, ]+?) ON (?P<kind>FUNCTION|ROUTINE|SCHEMA|ALL TABLES IN SCHEMA|)"
    r"\s*(?P<objects>.+?)\s+TO\s+(?P<roles>[\w, ]+);",
    re.DOTALL,
)
_KINDS = {"ROUTINE": "FUNCTION", "FUNCTION": "FUNCTION", "SCHEMA": "SCHEMA"}
_COMMENT = re.compile(r"--[^\n]*")
_BETWEEN = re.compile(r",\s*(?![^()]*\))")
_ROLES = ("caller", "applier", "operator", "admin")

#: What a role may grant on, and did: without CASCADE it would stay.
_OPTION = "GRANT OPTION FOR "


class Grant(NamedTuple):
    """One privilege of one role on one object.

    Attributes:
        privilege: SELECT; of a column SELECT (payload); the option to grant it on GRANT OPTION FOR SELECT.
        kind: FUNCTION, SCHEMA or TABLE.
    """

    role: str
    privilege: str
    kind: str
    object: str

    def sql(self, verb: str) -> str:
        """Return the statement that grants it (GRANT) or takes it away (REVOKE)."""
        kind = "ROUTINE" if self.kind == "FUNCTION" else self.kind
        direction = "TO" if verb == "GRANT" else "FROM"
        cascade = " CASCADE" if self.is_option else ""
        return f"{verb} {self.privilege} ON {kind} {self.object} {direction} {self.role}{cascade}"

    @property
    def is_option(self) -> bool:
        return self.privilege.startswith(_OPTION)


class Change(NamedTuple):
    """A statement that puts something right. done: it was run; or this login may not run it."""

    sql: str
    done: bool


Report: TypeAlias = Callable[[Change], None]


class Differences(NamedTuple):
    """What is not as it must be.

    Attributes:
        roles: those that are missing.
        powerful: those with powers that every login with them would get.
        public: what everybody has, and nobody should have so.
        missing: what the roles that are there lack.
        extra: what they have more than they need, and the options of others by which they, or everybody,
            were granted something.
        opened: what others have got by default privileges, as in a restore.
    """

    roles: list[str]
    powerful: list[str]
    public: list[Grant]
    missing: list[Grant]
    extra: list[Grant]
    opened: list[Grant]

    def statements(self) -> list[str]:
        """Return the statements that put it right, except for missing roles."""
        return [
            *(powers_sql(role) for role in self.powerful),
            *(
                each.sql("REVOKE")
                for each in sorted(self.public + self.extra + self.opened, key=lambda one: not one.is_option)
            ),
            *(grant.sql("GRANT") for grant in self.missing),
        ]


def powers_sql(role: str) -> str:
    """Return the statement that takes a role's powers away."""
    return f"ALTER ROLE {role} NOSUPERUSER NOCREATEROLE NOBYPASSRLS"


def differences(ask: Ask, schema: str) -> Differences:
    """Compare what the roles and PUBLIC may do in a schema of today's revision with what they must.

    What lies in the schema and is not ours is left out. So is what is granted to anybody else, unless default
    privileges gave it when the object was made: then nobody has meant it.

    Args:
        ask: in a session whose search_path does not name the schema.
        schema: a checked name.

    Raises:
        Whatever `ask` does.
    """
    wanted = [name for name in (*_ROLES, "receiver") if name in _parts(ask, schema)]
    names = [f"{schema}_{name}" for name in wanted]
    there = {row[0]: row[1] for row in ask(acls.POWERFUL.format(roles=",".join(names)))}
    actual = {*_actual(ask, schema, names)}
    expected = {grant for grant in _expected(ask, schema, wanted) if grant.role in names}
    return Differences(
        roles=[name for name in names if name not in there],
        powerful=[name for name in names if there.get(name)],
        public=sorted(grant for grant in actual if grant.role == "PUBLIC"),
        missing=sorted(grant for grant in expected - actual if grant.role in there),
        extra=sorted(grant for grant in actual - expected if grant.role in names or grant.is_option),
        opened=sorted(grant for grant in actual if not (grant.role in {"PUBLIC", *names} or grant.is_option)),
    )


def close_opened(ask: Ask, run: Callable[[str], None], schema: str, report: Report | None = None) -> None:
    """Take away what others have got by default privileges, before functions are replaced.

    Afterwards nothing tells any more when such a function was made.

    Args:
        ask, run, schema, report: as for `set_right`; the schema is of any revision.

    Raises:
        Whatever `ask` and `run` do.
    """
    ours = {"PUBLIC", *(f"{schema}_{name}" for name in (*_ROLES, "receiver"))}
    found = {grant for grant in _actual(ask, schema, [*ours]) if grant.role not in ours}
    for grant in sorted(found, key=lambda one: not one.is_option):
        run(grant.sql("REVOKE"))
    left = {*_actual(ask, schema, [*ours])} if found else set()
    tell(report, [grant.sql("REVOKE") for grant in sorted(found - left)], done=True)


def _actual(ask: Ask, schema: str, names: list[str]) -> Iterator[Grant]:
    """Yield what the roles `names` and PUBLIC have on what is ours, and others by default privileges."""
    ours = {"", *created_names(script()), *created_names(receiver_source())}
    relations = acls.RELATIONS.format(schema=schema)
    listed = ",".join(names)
    for *said, bare, grantable, by_default in ask(
        acls.ACTUAL.format(schema=schema, roles=listed, relations=relations, at_once=acls.AT_ONCE)
    ):
        if bare in ours:
            counts = by_default or said[0] in {"PUBLIC", *names}
            yield from _held(Grant(*said), counts=counts, grantable=grantable)


def _held(grant: Grant, *, counts: bool, grantable: bool) -> Iterator[Grant]:
    """Yield a privilege, if what its role has counts, and the option to grant it on."""
    if counts:
        yield grant
    if grantable:
        yield grant._replace(privilege=_OPTION + grant.privilege)


def set_right(ask: Ask, run: Callable[[str], None], schema: str, report: Report | None = None) -> None:
    """Bring roles, grants and revokes to what they must be. Where they are, nothing is written.

    Roles are made where they are missing. What this login may not change stays, and is reported so.

    Args:
        ask: as for `differences`.
        run: runs a statement.
        report: is told of every change; None: what stays is logged as a warning.

    Raises:
        Whatever `run` does: a role is missing and may not be made, or somebody else owns the schema.
    """
    found = differences(ask, schema)
    if found.roles:
        for statement in statements(missing_roles_script(schema, found.roles)):
            run(statement)
        made, found = found.roles, differences(ask, schema)
        tell(report, [f"CREATE ROLE {role} NOLOGIN" for role in made], done=True)
    superuser = bool([*ask("SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = current_user AND rolsuper")])
    wanted = found.statements()
    if not superuser:
        # It would be refused, and the rest with it.
        wanted = wanted[len(found.powerful) :]
    for statement in wanted:
        run(statement)
    # A role that may not grant anything on an object gets a warning, not an error.
    left = differences(ask, schema).statements() if wanted or found.powerful else []
    tell(report, [each for each in wanted if each not in left], done=True)
    tell(report, left, done=False)


def tell(report: Report | None, made: Iterable[str], *, done: bool) -> None:
    """Say what was changed; or, where this login may not change it, what is not as it must be."""
    for statement in made:
        if report is not None:
            report(Change(statement, done))
        elif not done:
            _logger.warning("not as it must be, and this login may not change it: %s", statement)


def wrong(connection: psycopg.Connection[Any], schema: str) -> list[str]:
    """Return the statements that would put right what is not as it must be; none where everything is.

    Raises:
        psycopg.Error: the database refused the question.
    """

    def ask(query: str) -> list[Any]:
        return connection.execute(query.encode()).fetchall()

    found = differences(ask, schema)
    roles = [f"CREATE ROLE {role} NOLOGIN" for role in found.roles]
    return [*roles, *found.statements(), *row_security.wrong(ask, schema)]


def missing_roles_script(schema: str, roles: Iterable[str]) -> str:
    """Return the SQL that makes missing roles, and leaves alone those that are there."""
    receiver = next(one for one in statements(receiver_source()) if "CREATE ROLE" in one)
    both = {f"{schema}_receiver": rename(receiver, schema)}
    return "\n".join(dict.fromkeys(both.get(role, roles_script(schema)) for role in roles))


def _parts(ask: Ask, schema: str) -> set[str]:
    """Return whose roles the schema needs: it may be the receiver's guard alone, or have none."""
    tables = {name for (name,) in ask(acls.TABLES.format(schema=schema))}
    return {*(_ROLES if "topic" in tables else ()), *(("receiver",) if "accepted" in tables else ())}


def _expected(ask: Ask, schema: str, wanted: list[str]) -> Iterator[Grant]:
    """Yield what the files grant, on what is there, in the names that the catalog has for it."""
    # Of the rest even the types are not there, and before 16 nobody may ask about those.
    scripts = {"caller": grants_script(), "receiver": receiver_source()}
    granted = [grant for role in scripts if role in wanted for grant in _granted(schema, scripts[role])]
    functions = sorted({f"'{grant.object}'" for grant in granted if grant.kind == "FUNCTION"})
    alike = {row[0]: row[1] for row in ask(acls.ALIKE.format(functions=", ".join(functions)))}
    relations = {row[0] for row in ask(acls.RELATIONS.format(schema=schema))}
    for grant in granted:
        if grant.kind == "FUNCTION" and grant.object in alike:
            yield grant._replace(object=alike[grant.object])
        elif grant.kind == "SCHEMA" or grant.object in relations:
            yield grant


def _granted(schema: str, text: str) -> Iterator[Grant]:
    """Yield what SQL grants."""
    tables = [f"inturn.{name}" for name in created_names(script())]
    for statement in statements(_COMMENT.sub("", text)):
        if grant := _GRANT.fullmatch(statement):
            everything = grant["kind"] == "ALL TABLES IN SCHEMA"
            objects = tables if everything else _BETWEEN.split(grant["objects"])
            kind = _KINDS.get(grant["kind"], "TABLE")
            for role in re.split(r",\s*", rename(grant["roles"], schema)):
                for privilege in re.split(r",\s*", grant["privileges"]):
                    for name in objects:
                        said = rename(f"SCHEMA {name}", schema).removeprefix("SCHEMA ")
                        yield Grant(role, privilege, kind, said)
