"""What SQLAlchemy's connections and errors are, without importing it: that takes longer than all else here.

Nobody has a connection of it, or an error, who has not imported it.
"""

from __future__ import annotations

import sys

import psycopg

_ASYNC_KINDS = frozenset({"AsyncConnection", "AsyncSession", "async_scoped_session"})


def is_sync_connection(connection: object) -> bool:
    """Whether it is psycopg's Connection, or one of SQLAlchemy's of that kind."""
    if isinstance(connection, psycopg.Connection):
        return True
    if "sqlalchemy" not in sys.modules:
        return False
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session, scoped_session

    return isinstance(connection, Connection | Session | scoped_session)


def is_async_connection(connection: object) -> bool:
    """Whether it is psycopg's AsyncConnection, or one of SQLAlchemy's of that kind."""
    # By name, as importing them needs greenlet, which only their users install.
    return isinstance(connection, psycopg.AsyncConnection) or any(
        base.__module__.startswith("sqlalchemy.ext.asyncio") and base.__name__ in _ASYNC_KINDS
        for base in type(connection).__mro__
    )


def database_errors() -> tuple[type[Exception], ...]:
    """Return what is raised for an error of the database."""
    if "sqlalchemy" not in sys.modules:
        return (psycopg.Error,)
    from sqlalchemy.exc import DBAPIError

    return (psycopg.Error, DBAPIError)


def cause_of(error: Exception) -> BaseException:
    """Return the driver's own error, where SQLAlchemy's is around it."""
    cause: BaseException | None = getattr(error, "orig", None)
    return cause or error
