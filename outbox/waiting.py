"""wait and wait_async: read your own writes, over the queue."""

from __future__ import annotations

from inturn.outbox.appending import AnyAsyncConnection, SyncConnection
from inturn.outbox.one_wait import OneWait, Step, Waited
from inturn.outbox.session import opened, opened_async
from inturn.outbox.statement import check_kind
from inturn.schema.source import DEFAULT_SCHEMA


def wait(
    connection: SyncConnection,
    topic: str,
    key: str,
    seq: int | None = None,
    *,
    timeout: float | None = 30.0,
    idempotency_key: str | None = None,
    schema: str = DEFAULT_SCHEMA,
) -> Waited:
    """Wait until a key has been applied up to a command, so that you can read what the command did.

    Commit first, and use the connection for nothing else meanwhile. The wait LISTENs; where it cannot (behind
    a pooler, on a standby, on another driver than psycopg, or in a session that listens already), it polls.

    Args:
        connection: psycopg's Connection, or SQLAlchemy's Connection, Session or scoped_session, in no
            transaction. For a Session that is bound to an engine, another connection of its pool is used.
        topic, key: the key to wait for.
        seq: the number to wait for, as append returned it; the command need not exist yet. None: wait for
            everything that is committed on the key now.
        timeout: seconds, connecting included; 0: look once; None: for ever. What is under way at the end gets
            5 more; then a connection of psycopg that has not answered is closed.
        idempotency_key: wait for the command that has it, committed or not; only without a seq.
        schema: the schema in which inturn is installed.

    Returns:
        Where the key stands, and whether the command that you waited for was skipped.

    Raises:
        KeyHeld: the key is held, and moves only when an operator acts; raised as soon as that is so.
        WaitTimedOut: the time is over.
        WrongIsolation: the connection is in a transaction.
        UnknownTopic, TopicNotGranted: the topic was never created, or is granted to others only.
        UnknownKey: no seq and no idempotency key was given, and nothing was ever committed on the key.
        KeyRefused, SeqRefused, IdempotencyKeyRefused, SchemaNameRefused: there can be no such key, seq, ...
        ValueError, TypeError: the timeout is below 0 or not a number; it is not such a connection.
        psycopg.Error, sqlalchemy.exc.DBAPIError: anything else the database says; also a lost connection.
    """
    return run(connection, OneWait(topic, key, seq, timeout, idempotency_key, schema))


async def wait_async(
    connection: AnyAsyncConnection,
    topic: str,
    key: str,
    seq: int | None = None,
    *,
    timeout: float | None = 30.0,
    idempotency_key: str | None = None,
    schema: str = DEFAULT_SCHEMA,
) -> Waited:
    """Do what `wait` does, on the same kinds of connection as `append_async`; it can be cancelled."""
    check_kind(connection, is_async=True)
    task = OneWait(topic, key, seq, timeout, idempotency_key, schema)
    async with opened_async(connection, task) as session:
        steps = task.steps()
        answer: object = None
        while True:
            try:
                step: Step = steps.send(answer)
            except StopIteration as end:
                found: Waited = end.value
                return found
            answer = await session.do(step)


def run(connection: SyncConnection, task: OneWait) -> Waited:
    """Wait as `wait` does; a task whose connection was lost goes on over another one."""
    check_kind(connection, is_async=False)
    with opened(connection, task) as session:
        steps = task.steps()
        answer: object = None
        while True:
            try:
                step: Step = steps.send(answer)
            except StopIteration as end:
                found: Waited = end.value
                return found
            answer = session.do(step)
