"""The session that an applier works in: its settings, what was left in it, its bounds and its end."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from psycopg import sql

from inturn.applier.calls.call import Call, first_value, nothing, one_as, statement, value
from inturn.schema.connection import pins


class Beginning(NamedTuple):
    """What a session has at its beginning.

    settings: what its settings are known by. transaction_timeout: in seconds; 0 or None: there is none.
    """

    settings: str
    transaction_timeout: float | None


def beginning() -> Call[Beginning]:
    """Return the call that says what the session has at its beginning."""
    return Call(
        statement(
            "SELECT {settings}, extract(epoch FROM"
            " pg_catalog.current_setting('transaction_timeout', true)::interval)::double precision"
        ),
        (),
        one_as(Beginning),
    )


def check_interval() -> Call[str]:
    """Return the call that says how often the server looks for the client of a session that is at work."""
    return Call(statement("SELECT pg_catalog.current_setting('client_connection_check_interval')"), (), value)


def is_littered() -> Call[bool]:
    """Return the call that says whether something was left that only a new session gets rid of."""
    return Call(
        statement(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_class"
            " WHERE relnamespace OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema())"
            " OR EXISTS (SELECT FROM pg_catalog.pg_locks WHERE locktype OPERATOR(pg_catalog.=) 'advisory'"
            " AND pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid())"
            " OR EXISTS (SELECT FROM pg_catalog.pg_listening_channels())"
            " OR EXISTS (SELECT FROM pg_catalog.pg_prepared_statements WHERE from_sql)"
            " OR EXISTS (SELECT FROM pg_catalog.pg_cursors WHERE is_holdable)"
        ),
        (),
        value,
    )


def limit(seconds: float) -> Call[None]:
    """Return the call that has the database cancel what takes longer, to the end of the transaction."""
    return Call(
        sql.SQL("SELECT pg_catalog.set_config('statement_timeout', {}, true)").format(
            str(max(int(seconds * 1000), 1))
        ),
        (),
        nothing,
    )


def put_back(backend_pid: int, seconds: float | None) -> sql.Composed:
    """Return the statements that put back the settings of the beginning, and what `limit` has set."""
    again = [pins(backend_pid, for_handlers=True)]
    if seconds is not None:
        again.append(limit(seconds).query)
    return sql.SQL("RESET SESSION AUTHORIZATION; RESET ALL; {}").format(sql.SQL("; ").join(again))


def server() -> Call[str]:
    """Return the call that says which run of the server a connection is to."""
    return Call(statement("SELECT {server}"), (), value)


def clock() -> Call[str]:
    """Return the call that says what the database's clock says."""
    return Call(statement("SELECT pg_catalog.clock_timestamp()::pg_catalog.text"), (), value)


def superuser() -> Call[str | None]:
    """Return the call that says as which superuser the session works; None: as none."""
    return Call(
        statement(
            "SELECT rolname FROM pg_catalog.pg_roles"
            " WHERE rolsuper AND rolname OPERATOR(pg_catalog.=) current_user"
        ),
        (),
        first_value,
    )


def bound() -> Call[None]:
    """Return the call that bounds statements of the transaction: to 10 s, and a wait for a lock to 1 s."""
    return Call(
        statement(
            "SELECT pg_catalog.set_config('statement_timeout', '10 s', true),"
            " pg_catalog.set_config('lock_timeout', '1 s', true)"
        ),
        (),
        nothing,
    )


def end_unread(milliseconds: int) -> Call[None]:
    """Return the call that has the server end the session once its client has read nothing for so long.

    Only what waits to be read counts; and only over TCP, where the server's system can tell.
    """
    return Call(
        sql.SQL("SELECT pg_catalog.set_config('tcp_user_timeout', {}, false)").format(str(milliseconds)),
        (),
        nothing,
    )


def is_idle(backend_pid: int) -> Call[bool]:
    """Return the call that says whether another session does nothing, or has ended."""
    return Call(
        statement(
            "SELECT NOT EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE pid OPERATOR(pg_catalog.=) %s"
            " AND (state IS NULL OR NOT pg_catalog.starts_with(state, 'idle')))"
        ),
        (backend_pid,),
        value,
    )


def which_are_there(backend_pids: list[int], starts: list[datetime]) -> Call[list[int]]:
    """Return the call that says which of some sessions are there still, each with when it began."""
    return Call(
        statement(
            "SELECT coalesce(pg_catalog.array_agg(s.pid), '{{}}') FROM pg_catalog.pg_stat_activity s"
            " JOIN ROWS FROM (pg_catalog.unnest(%s::integer[]), pg_catalog.unnest(%s::timestamptz[]))"
            " l (pid, start) ON l.pid OPERATOR(pg_catalog.=) s.pid"
            " AND coalesce(s.backend_start, l.start) OPERATOR(pg_catalog.=) l.start"
        ),
        (backend_pids, starts),
        value,
    )


def terminate(backend_pid: int | None, of_server: str | None, milliseconds: int) -> Call[None]:
    """Return the call that ends another session, and waits until it has ended.

    of_server: the run of the server that the session is of, see `server`. After a failover another server has
    another session of this number: that goes on.
    """
    return Call(
        statement(
            "SELECT pg_catalog.pg_terminate_backend(%s, %s)"
            " WHERE {server} OPERATOR(pg_catalog.=) %s::pg_catalog.text"
        ),
        (backend_pid, milliseconds, of_server),
        nothing,
    )
