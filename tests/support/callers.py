"""The ways in which a Python service holds a transaction, each as one object for the tests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Protocol, TypeVar

import psycopg
from sqlalchemy import Connection, NullPool, create_engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from inturn.outbox import NewCommand, append, append_async, append_many, append_many_async, wait, wait_async
from support.database import Database

_T = TypeVar("_T")


class Caller(Protocol):
    """Runs steps in one transaction of its own, which the caller ends."""

    def __call__(self, database: Database, *steps: Step, commit: bool = True) -> list[Any]:
        """Run the steps, then commit or roll back; return what each step gave."""


class Step:
    """One append or append_many, by the form that fits the connection."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.arguments = arguments
        self.options = options

    def run(self, connection: Any) -> Any:
        return append(connection, *self.arguments, **self.options)

    async def run_async(self, connection: Any) -> Any:
        return await append_async(connection, *self.arguments, **self.options)


class Many(Step):
    def __init__(self, topic: str, commands: Iterable[NewCommand], **options: Any) -> None:
        super().__init__(topic, commands, **options)

    def run(self, connection: Any) -> Any:
        return append_many(connection, *self.arguments, **self.options)

    async def run_async(self, connection: Any) -> Any:
        return await append_many_async(connection, *self.arguments, **self.options)


class Pause(Step):
    """A wait; of a connection that has done nothing else in its transaction."""

    def run(self, connection: Any) -> Any:
        return wait(connection, *self.arguments, **self.options)

    async def run_async(self, connection: Any) -> Any:
        return await wait_async(connection, *self.arguments, **self.options)


def _sync(
    opened: Callable[[Database], AbstractContextManager[Any]],
) -> Caller:
    def call(database: Database, *steps: Step, commit: bool = True) -> list[Any]:
        with opened(database) as connection:
            try:
                return [step.run(connection) for step in steps]
            except BaseException:
                commit = False
                raise
            finally:
                connection.commit() if commit else connection.rollback()

    return call


def _async(
    opened: Callable[[Database], Awaitable[AbstractAsyncContextManager[Any]]],
) -> Caller:
    def call(database: Database, *steps: Step, commit: bool = True) -> list[Any]:
        async def run() -> list[Any]:
            ends = commit
            async with await opened(database) as connection:
                try:
                    return [await step.run_async(connection) for step in steps]
                except BaseException:
                    ends = False
                    raise
                finally:
                    await (connection.commit() if ends else connection.rollback())

        return asyncio.run(run())

    return call


def _psycopg(database: Database) -> psycopg.Connection[Any]:
    return psycopg.connect(database.caller_dsn)


def _connection(database: Database) -> Connection:
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(database.caller_dsn), poolclass=NullPool
    )
    return engine.connect()


def _session(database: Database) -> Session:
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(database.caller_dsn), poolclass=NullPool
    )
    return Session(engine)


async def _psycopg_async(database: Database) -> psycopg.AsyncConnection[Any]:
    return await psycopg.AsyncConnection.connect(database.caller_dsn)


def _async_engine(database: Database) -> Any:
    return create_async_engine(
        "postgresql+psycopg://",
        async_creator=lambda: psycopg.AsyncConnection.connect(database.caller_dsn),
        poolclass=NullPool,
    )


async def _connection_async(database: Database) -> AsyncConnection:
    connection: AsyncConnection = _async_engine(database).connect()
    return connection


async def _session_async(database: Database) -> AsyncSession:
    return AsyncSession(_async_engine(database))


CALLERS: dict[str, Caller] = {
    "psycopg.Connection": _sync(_psycopg),
    "sqlalchemy.Connection": _sync(_connection),
    "sqlalchemy.Session": _sync(_session),
    "psycopg.AsyncConnection": _async(_psycopg_async),
    "sqlalchemy.AsyncConnection": _async(_connection_async),
    "sqlalchemy.AsyncSession": _async(_session_async),
}
