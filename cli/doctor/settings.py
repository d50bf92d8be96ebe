"""What is set for sessions of callers and appliers, wherever it is set, as PostgreSQL reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import psycopg
from psycopg import sql

from inturn.cli.doctor.finding import Facts, Finding

#: What cuts a statement or a transaction short.
TIMEOUTS = (
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "transaction_timeout",
)
#: What is tried instead of a setting that would end our session, or needs a superuser: the same values go.
_TRIED_INSTEAD = {**dict.fromkeys(TIMEOUTS, "lock_timeout"), "track_counts": "array_nulls"}


class Said(NamedTuple):
    """A setting that somebody has made.

    Attributes:
        value: as SHOW has it; None: there may be one that this session cannot see.
        level: the highest is in effect: 0 the server's files, 1 every role, 2 the database, 3 a login, 4 a
            login in the database.
        role: of which login; None: of all.
        whose: the same in words.
    """

    name: str
    value: str | None
    level: int
    role: int | None
    whose: str


def said(facts: Facts, names: tuple[str, ...], *roles: str) -> Iterator[Said | Finding]:
    """Yield what is set, and in effect for a login that has one of these roles of inturn.

    While there is no such login: in effect for any that comes. What cannot be seen is a finding.
    """
    with facts.connection.transaction(force_rollback=True):
        _unpin(facts, names)
        logins, theirs = _logins(facts, roles)
        found = [*_in_catalog(facts, names, logins), *_in_files(facts, names)]
        found = [each._replace(value=_as_read(facts, each)) for each in found]
    for each in found:
        if not _is_in_effect(each, found, theirs):
            continue
        if each.value is not None:
            yield each
        else:
            yield Finding(
                "warning",
                f"what the server's files say of {each.name} cannot be seen: this session has a value of its"
                " own, from its login or from PGOPTIONS",
                "Run inturn doctor with a login that has none, or as a superuser",
            )


def _unpin(facts: Facts, names: tuple[str, ...]) -> None:
    """Put aside what our session has set itself, as the pins of schema/connection.py, until the rollback."""
    for row in facts.rows(
        "SELECT name FROM pg_settings WHERE name = ANY (%s) AND source = 'session' AND context = 'user'",
        list(names),
    ):
        facts.connection.execute(sql.SQL("RESET {}").format(sql.Identifier(row["name"])))


def _logins(facts: Facts, roles: tuple[str, ...]) -> tuple[set[int | None], set[int | None]]:
    """Return the logins that have one of the roles, and those that use it without asking, or the same.

    Whoever has made a role only may grant it. Superusers, who have each, do not count.
    """
    rows = facts.rows(
        """
        SELECT r.oid::bigint AS role, bool_or(pg_has_role(r.oid, o.oid, 'usage')) AS uses
        FROM pg_roles r JOIN pg_roles o ON o.rolname = ANY (%s) AND pg_has_role(r.oid, o.oid, 'member')
        WHERE r.rolcanlogin AND NOT r.rolsuper GROUP BY r.oid
        """,
        [f"{facts.schema}_{role}" for role in roles],
    )
    logins: set[int | None] = {row["role"] for row in rows}
    return logins, {row["role"] for row in rows if row["uses"]} or logins


def _in_catalog(facts: Facts, names: tuple[str, ...], logins: set[int | None]) -> list[Said]:
    rows = facts.rows(
        """
        SELECT p.name, substr(s, strpos(s, '=') + 1) AS value,
               2 * (g.setrole <> 0)::int + (g.setdatabase <> 0)::int + 1 AS level,
               nullif(g.setrole, 0)::bigint AS role,
               coalesce(nullif(concat_ws(' in ', 'role ' || r.rolname, 'database ' || d.datname), ''),
                        'every role') AS whose
        FROM pg_db_role_setting g CROSS JOIN unnest(g.setconfig) s
        JOIN pg_settings p ON lower(p.name) = lower(split_part(s, '=', 1)) AND p.name = ANY (%s)
        LEFT JOIN pg_roles r ON r.oid = g.setrole LEFT JOIN pg_database d ON d.oid = g.setdatabase
        WHERE (g.setdatabase = 0 OR d.datname = current_database())
          AND (g.setrole = 0 OR g.setrole::bigint = ANY (%s))
        ORDER BY p.name, whose
        """,
        list(names),
        list(logins),
    )
    return [Said(**row) for row in rows]


def _in_files(facts: Facts, names: tuple[str, ...]) -> list[Said]:
    """Return what the server's files, command line and environment say, which a value of our login hides."""
    rows = facts.rows(
        """
        SELECT p.name, p.source IN ('user', 'database user', 'client', 'session') AS hidden,
               current_setting(p.name) AS value
        FROM pg_settings p
        WHERE p.name = ANY (%s)
          AND p.source IN ('configuration file', 'command line', 'environment variable',
                           'user', 'database user', 'client', 'session')
        ORDER BY p.name
        """,
        list(names),
    )
    hidden = {row["name"]: None for row in rows if row["hidden"]}
    if hidden and facts.rows("SELECT has_table_privilege('pg_file_settings', 'SELECT') AS may")[0]["may"]:
        of_files = facts.rows(
            "SELECT p.name, f.setting AS value FROM pg_settings p"
            " JOIN pg_file_settings f ON lower(f.name) = lower(p.name)"
            " WHERE f.applied AND p.name = ANY (%s)",
            list(hidden),
        )
        hidden = {row["name"]: row["value"] for row in of_files}
    seen = {row["name"]: row["value"] for row in rows if not row["hidden"]}
    return [Said(name, value, 0, None, "everybody") for name, value in sorted({**seen, **hidden}.items())]


def _is_in_effect(it: Said, found: list[Said], logins: set[int | None]) -> bool:
    """Return whether not each of the logins that it is for has another value in its place."""
    over = {other.role for other in found if other.name == it.name and other.level > it.level}
    return it.role not in over and not (it.role is None and logins and logins <= over)


def _as_read(facts: Facts, it: Said) -> str | None:
    """Return the value as PostgreSQL reads it: the catalog keeps what was typed, as FALSE or 0s."""
    if it.value is None:
        return None
    tried = _TRIED_INSTEAD.get(it.name, it.name)
    try:
        with facts.connection.transaction(force_rollback=True):
            return str(facts.rows("SELECT set_config(%s, %s, true) AS value", tried, it.value)[0]["value"])
    except psycopg.Error:
        return it.value
