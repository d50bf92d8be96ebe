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
    """Wait until a key has been applied, or skipped, up to a number: then what the commands did can be read.

    Commit first. The connection is used for nothing else meanwhile, and no transaction stays open in it.
    It LISTENs; where it cannot (behind a pooler, on a standby, on another driver than psycopg, or in a
    session that listens to something already) it looks again after an eighth of the time waited so far, at
    least 10 ms and at most a second.

    Args:
        connection: psycopg's Connection, or SQLAlchemy's Connection or Session, in no transaction. For a
            Session that is bound to an engine, another connection of the engine's pool is used.
        topic, key: which key.
        seq: up to where, as append returned it; it need not exist yet. None: up to all that is committed now.
        timeout: seconds, connecting included; 0: look once; None: for ever. What is under way at the end gets
            5 more; a connection of psycopg that has not answered then is closed.
        idempotency_key: wait for the command that has it, whether that is committed yet or not; without a
            seq.
        schema: where inturn is installed.

    Raises:
        KeyHeld: the key stands still until an operator acts; raised as soon as that is so.
        WaitTimedOut: the time is over.
        WrongIsolation: the connection is in a transaction.
        UnknownTopic, TopicNotGranted: the topic was never created, or is granted to others only.
        UnknownKey: no seq and no idempotency key was given, and nothing was ever committed on the key.
        KeyRefused, SeqRefused, IdempotencyKeyRefused: it cannot be one.
        ValueError: the timeout is below 0 or not a number; TypeError: the connection is none of these.
        psycopg.Error, sqlalchemy.exc.DBAPIError: anything else the database says, also that the connection
            was lost; wait again, on another one.
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
    """Do as `wait`, on psycopg's AsyncConnection or SQLAlchemy's async ones; it can be cancelled."""
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
