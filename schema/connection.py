"""How every connection of the package is opened, with the settings that the code relies on.

A role or a database may have defaults for isolation, dates or intervals. PgBouncer refuses them as startup
options, so one statement sets them after connecting. Behind a pooler it sets only what PgBouncer carries over
to whichever server session a transaction gets; anything else would stay behind in a session that others use.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Conninfo

from inturn.schema.pooling import look, look_async

#: Unless the connection string says otherwise, a connection is given up that has been dead for 25 s: an idle
#: one by its probes, another by how long what it has sent is not acknowledged.
KEEPALIVE = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
#: So many seconds one address has to greet; psycopg's own default is 130.
CONNECT_TIMEOUT = 20
#: What psycopg can read, and what our own SQL is written for.
_PINNED = {"DateStyle": "ISO", "IntervalStyle": "postgres", "standard_conforming_strings": "on"}
#: In autocommit every statement is a transaction at the default level. Not set behind a pooler.
_PINNED_DIRECTLY = {
    "default_transaction_isolation": "read committed",
    "array_nulls": "on",
    "quote_all_identifiers": "off",
}
#: The server too gives a session up whose client's host is gone, after 25 s, and what it has locked. It would
#: wait for two hours otherwise. Not set behind a pooler, which is the client there.
_PROBED = {"tcp_keepalives_idle": "10", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "3"}
#: How often it looks for the client of a session that is at work, where its system can tell: what a killed
#: process has left would go on to its end otherwise, with its keys locked.
_CHECK_INTERVAL, _CHECKED = "client_connection_check_interval", "5s"
#: Names mean PostgreSQL's own, and rows that a login may not see are left out rather than refused. Not where
#: handlers run.
_OWN = {"search_path": "pg_catalog, pg_temp", "row_security": "on"}


def complete(dsn: str, **defaults: Any) -> str:
    """Return the connection string with these parameters, and with our timeouts, where nothing gives them.

    What the connection string, the PG* variables or a service file give stays.

    Raises:
        psycopg.ProgrammingError: the connection string cannot be read.
    """
    given = conninfo_to_dict(dsn)
    missing = {name: value for name, value in defaults.items() if name not in given}
    # Nothing tells what a service file that is named in the connection string gives.
    elsewhere = _from_environment()
    known = frozenset() if "service" in given else _known()
    if not any(name in given or name in elsewhere for name in ("keepalives", *KEEPALIVE)):
        missing |= {name: value for name, value in KEEPALIVE.items() if name in known}
    if "connect_timeout" in known and "connect_timeout" not in {*given, *elsewhere}:
        missing["connect_timeout"] = CONNECT_TIMEOUT
    return make_conninfo(dsn, **missing)


def connect(
    dsn: str,
    *,
    kind: type[psycopg.Connection[Any]] = psycopg.Connection,
    autocommit: bool = True,
    prepare_threshold: int | None = None,
    application_name: str | None = None,
    for_handlers: bool = False,
) -> psycopg.Connection[Any]:
    """Return a new connection, at READ COMMITTED and with the settings that the code relies on.

    Args:
        dsn: libpq connection string; what it leaves out comes from the PG* variables.
        kind: of which class the connection is.
        prepare_threshold: as psycopg has it; None: the driver prepares nothing. Through a pooler it never
            does.
        application_name: None: what the connection string says, or `inturn`.
        for_handlers: keep the search_path that the session came with, for what users run on the connection;
            all of inturn's own statements on it are qualified.

    Raises:
        psycopg.Error: the database cannot be reached or refuses.
        StatementPooling: it is reached through a pooler that has no transactions.
    """
    connection = kind.connect(
        _conninfo(dsn, application_name), autocommit=True, prepare_threshold=prepare_threshold
    )
    try:
        # For transactions that the driver begins, behind a pooler too.
        connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        pinned = connection.execute(pins(connection.info.backend_pid, for_handlers=for_handlers))
        look(connection, pinned.fetchone())
        connection.autocommit = autocommit
    except BaseException:
        connection.close()
        raise
    return connection


async def connect_async(
    dsn: str,
    *,
    kind: type[psycopg.AsyncConnection[Any]] = psycopg.AsyncConnection,
    prepare_threshold: int | None = None,
    application_name: str | None = None,
) -> psycopg.AsyncConnection[Any]:
    """Return a new connection in autocommit, for the running event loop; see connect.

    Raises:
        psycopg.Error: the database cannot be reached or refuses.
        StatementPooling: it is reached through a pooler that has no transactions.
    """
    connection = await kind.connect(
        _conninfo(dsn, application_name), autocommit=True, prepare_threshold=prepare_threshold
    )
    try:
        await connection.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
        pinned = await connection.execute(pins(connection.info.backend_pid, for_handlers=True))
        await look_async(connection, await pinned.fetchone())
    except BaseException:
        await connection.close()
        raise
    return connection


def _conninfo(dsn: str, application_name: str | None) -> str:
    conninfo = complete(dsn, fallback_application_name="inturn")
    named = {"application_name": application_name} if application_name is not None else {}
    return make_conninfo(conninfo, client_encoding="utf8", **named)


def pins(backend_pid: int, *, for_handlers: bool) -> sql.Composed:
    """Return the statement that sets what is pinned.

    A pooler tells its clients another backend than the one that they have. There the search_path stays,
    as it would stay behind in a session that others use: operators connect directly, see security.md.
    """
    pinned_directly = _PINNED_DIRECTLY | _PROBED | ({} if for_handlers else _OWN)
    everywhere = [
        sql.SQL("pg_catalog.set_config({}, {}, false)").format(name, value) for name, value in _PINNED.items()
    ]
    directly = [
        sql.SQL("pg_catalog.set_config({}, {}, false)").format(name, value)
        for name, value in pinned_directly.items()
    ]
    directly.append(
        sql.SQL(
            "pg_catalog.set_config({name}, CASE WHEN pg_catalog.version() OPERATOR(pg_catalog.~) 'linux'"
            " THEN {} ELSE pg_catalog.current_setting({name}) END, false)"
        ).format(_CHECKED, name=_CHECK_INTERVAL)
    )
    return sql.SQL(
        "SELECT {}, CASE WHEN pg_catalog.pg_backend_pid() OPERATOR(pg_catalog.=) {}"
        " THEN pg_catalog.concat({}) END"
    ).format(sql.SQL(", ").join(everywhere), backend_pid, sql.SQL(", ").join(directly))


def pinned_for_handlers(check_interval: str) -> tuple[list[str], list[str]]:
    """Return the names and the values that `pins` sets directly where handlers run.

    check_interval: what it has made of that one.
    """
    pinned = _PINNED | _PINNED_DIRECTLY | _PROBED | {_CHECK_INTERVAL: check_interval}
    return [*pinned], [*pinned.values()]


@cache
def _known() -> frozenset[str]:
    """Return the parameters that this libpq knows."""
    return frozenset(option.keyword.decode() for option in Conninfo.get_defaults())


def _from_environment() -> frozenset[str]:
    """Return the parameters that the PG* variables give, or the service file that PGSERVICE names."""
    if "PGSERVICE" not in os.environ:
        return frozenset()
    return frozenset(
        option.keyword.decode()
        for option in Conninfo.get_defaults()
        if option.val is not None and option.val != option.compiled
    )
