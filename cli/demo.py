"""The command `inturn demo`: the ordering problem happens, and then it does not."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any

import click
import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from inturn.cli import demo_service as service
from inturn.cli.database import Database, pass_database
from inturn.cli.errors import Failure
from inturn.cli.exit_codes import ExitCode
from inturn.cli.output import Column, print_table
from inturn.outbox import append
from inturn.schema.install import upgrade

_DATABASE = "inturn_demo"
_MARK = "made by inturn demo; removed by its next run"
_MACHINES = 2
_CLIENTS = 8
_PATIENCE_SECONDS = 60.0

_EPILOG = """\b
Example:
  inturn demo --orders 500 --seed 7"""


@dataclass(frozen=True, slots=True)
class _Result:
    way: str
    left: int
    seconds: float


@click.command(epilog=_EPILOG, short_help="See the problem happen, and not happen.")
@click.option(
    "--orders",
    type=click.IntRange(1, 10_000),
    default=200,
    show_default=True,
    help="How many orders are inserted and then deleted.",
)
@click.option("--seed", type=int, default=42, show_default=True, help="Decides the delays.")
@pass_database
def demo(database: Database, orders: int, seed: int) -> int:
    """Play the field problem for real, in a database of its own (inturn_demo).

    Service A inserts orders at service B and deletes each again. B runs as two
    processes; each call takes its own time. Sent directly, some deletes overtake
    their inserts, and orders stay that should be gone. Sent by inturn, none does.
    """
    dsn = _fresh_database(database.conninfo)
    click.echo(
        f"Service A inserts {orders} orders at service B and deletes each of them.\n"
        f"B is {_MACHINES} processes of {service.THREADS} threads;"
        " an insert takes up to 30 ms, a delete up to 10.\n"
    )
    results = [
        _direct(dsn, orders, seed),
        _by_inturn("inturn, Python target", "orders-python", dsn, orders, seed),
        _by_inturn("inturn, SQL target", "orders-sql", dsn, orders, seed),
    ]
    print_table(
        [
            Column("calls reach B"),
            Column("orders left", right=True),
            Column("should be", right=True),
            Column("seconds", right=True),
        ],
        [[result.way, str(result.left), "0", f"{result.seconds:.2f}"] for result in results],
    )
    shown = make_conninfo(
        "", **{k: v for k, v in conninfo_to_dict(dsn).items() if k in {"host", "port", "user", "dbname"}}
    )
    click.echo(
        "\nDirectly, a delete that overtook its insert found nothing, and the order stayed."
        "\nBy inturn each order's commands took effect in turn, the orders in parallel."
        "\n\nTry next:"
        f'\n  export INTURN_DSN="{shown}"'
        "\n  inturn keys"
        "\n  inturn show order-1 --topic orders-python"
        "\n  inturn append orders-sql order-1 insert '{\"delay\": 0}' && inturn apply --drain"
    )
    wrong = [result.way for result in results[1:] if result.left]
    if wrong:
        raise Failure(f"orders were left by: {', '.join(wrong)}", hint="That is a bug: report it")
    return ExitCode.OK


def _direct(dsn: str, orders: int, seed: int) -> _Result:
    spawn = multiprocessing.get_context("spawn")
    calls = [spawn.Queue() for _ in range(_MACHINES)]

    def machine(number: int, ready: Any) -> BaseProcess:
        return spawn.Process(target=service.serve_calls, args=(dsn, calls[number], ready))

    with _machines(spawn, machine):
        started_at = time.monotonic()
        balancer = random.Random(seed)  # noqa: S311 - no secret
        for order, name in _calls(orders):
            balancer.choice(calls).put((order, name, service.delay_seconds(order, name, seed)))
        for queue in calls:
            queue.put(None)
    seconds = time.monotonic() - started_at
    return _Result("directly", _count_orders(dsn), seconds)


def _by_inturn(way: str, topic: str, dsn: str, orders: int, seed: int) -> _Result:
    spawn = multiprocessing.get_context("spawn")
    stop = spawn.Event()

    def machine(_number: int, ready: Any) -> BaseProcess:
        return spawn.Process(target=service.serve_topic, args=(dsn, topic, ready, stop))

    with _machines(spawn, machine, before_join=stop.set), psycopg.connect(dsn) as connection:
        connection.execute("TRUNCATE orders")
        connection.commit()
        started_at = time.monotonic()
        with ThreadPoolExecutor(_CLIENTS) as clients:
            # A's clients, each with its share of the orders.
            shares = [range(1 + n, orders + 1, _CLIENTS) for n in range(_CLIENTS)]
            list(clients.map(lambda share: _append(dsn, topic, share, seed), shares))
        _wait_until_applied(connection, topic, orders)
        seconds = time.monotonic() - started_at
    return _Result(way, _count_orders(dsn), seconds)


def _append(dsn: str, topic: str, orders: range, seed: int) -> None:
    """Be one client of A: append the commands of some orders, each in a transaction of its own."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for number in orders:
            for name in ("insert", "delete"):
                order = f"order-{number}"
                payload = {"delay": service.delay_seconds(order, name, seed)}
                append(connection, topic, order, name, payload)


def _calls(orders: int) -> Iterator[tuple[str, str]]:
    """Yield what A calls: the insert of an order, and right after it the delete."""
    for number in range(1, orders + 1):
        yield f"order-{number}", "insert"
        yield f"order-{number}", "delete"


@contextmanager
def _machines(
    spawn: SpawnContext,
    machine: Callable[[int, Any], BaseProcess],
    before_join: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Run the machines of B and wait until they are ready; at the end, until they have ended."""
    ready = [spawn.Event() for _ in range(_MACHINES)]
    processes = [machine(number, event) for number, event in enumerate(ready)]
    try:
        for process in processes:
            process.start()
        for event in ready:
            if not event.wait(_PATIENCE_SECONDS):
                raise Failure("a process of the demo's service B did not start")
        yield
        before_join()
        for process in processes:
            process.join(_PATIENCE_SECONDS)
            if process.exitcode != 0:
                raise Failure("a process of the demo's service B failed")
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()


def _wait_until_applied(connection: psycopg.Connection[Any], topic: str, orders: int) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        row = connection.execute(
            "SELECT count(*) FROM inturn.key_cursor WHERE topic = %s AND ready_at IS NULL"
            " AND held_at IS NULL AND applied_seq = 2",
            (topic,),
        ).fetchone()
        connection.commit()
        if row is not None and row[0] == orders:
            return
        time.sleep(0.01)
    raise Failure(f"not everything was applied within {_PATIENCE_SECONDS:.0f} s")


def _count_orders(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT count(*) FROM orders").fetchone()
    return int(row[0]) if row else 0


def _fresh_database(dsn: str) -> str:
    """Make the demo's database anew on the server of the given one; return its connection string."""
    own = make_conninfo(dsn, dbname=_DATABASE)
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(
            "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s",
            (_DATABASE,),
        ).fetchone()
        if row is not None and row[0] != _MARK:
            raise Failure(
                f"there is a database {_DATABASE} that the demo did not make",
                hint="Rename it, or run the demo on another server",
            )
        name = sql.Identifier(_DATABASE)
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(name))
        connection.execute(sql.SQL("CREATE DATABASE {}").format(name))
        connection.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(name, sql.Literal(_MARK)))
    upgrade(own)
    with psycopg.connect(own) as connection:
        connection.execute(service.SETUP)
    return own
