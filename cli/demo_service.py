"""Service B of the demo: what it does for a call, and the process it runs in."""

from __future__ import annotations

import queue
import random
import threading
import time
from multiprocessing.synchronize import Event
from typing import Any, Protocol

import psycopg

from inturn.applier import Applier, Command, Fleet

#: The threads of one machine of B.
THREADS = 8
#: B's table, and B as a SQL function, with the same delays as `delay_seconds`, given in the payload.
SETUP = """
CREATE TABLE orders (id text PRIMARY KEY);
CREATE FUNCTION apply_order(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_sleep((command.payload ->> 'delay')::double precision);
    IF command.name = 'insert' THEN
        INSERT INTO public.orders VALUES (command.key);
    ELSE
        DELETE FROM public.orders WHERE id = command.key;
    END IF;
END
$$;
SELECT inturn.create_topic('orders-python');
SELECT inturn.create_topic('orders-sql', 'sql:public.apply_order');
"""

Call = tuple[str, str, float]


class Calls(Protocol):
    """The calls that reach one machine of B."""

    def get(self, *, timeout: float) -> Call | None: ...


def delay_seconds(order: str, name: str, seed: int) -> float:
    """Return how long B's machine takes over a call before it touches the table, 0 to 30 ms.

    Most of the slow calls are inserts: they have more to look up.
    """
    longest = 0.030 if name == "insert" else 0.010
    return random.Random(f"{seed}:{order}:{name}").uniform(0, longest)  # noqa: S311 - no secret


def handle(connection: psycopg.Connection[Any], order: str, name: str, delay: float) -> None:
    """Serve one call, as B does however the call reached it."""
    time.sleep(delay)
    if name == "insert":
        connection.execute("INSERT INTO orders VALUES (%s)", (order,))
    else:
        connection.execute("DELETE FROM orders WHERE id = %s", (order,))


applier = Applier()


@applier.handler("orders-python")
def _apply(connection: psycopg.Connection[Any], command: Command) -> None:
    handle(connection, command.key, command.name, command.payload["delay"])


def serve_calls(dsn: str, calls: Calls, ready: Event) -> None:
    """Be one machine of B that is called directly, until the call None."""
    work: queue.SimpleQueue[Call | None] = queue.SimpleQueue()

    def run() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            started.wait()
            while (call := work.get()) is not None:
                handle(connection, *call)

    started = threading.Barrier(THREADS + 1)
    threads = [threading.Thread(target=run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    started.wait()
    ready.set()
    while (call := calls.get(timeout=60)) is not None:
        work.put(call)
    for _ in threads:
        work.put(None)
    for thread in threads:
        thread.join()


def serve_topic(dsn: str, topic: str, ready: Event, stop: Event) -> None:
    """Be one machine of B that applies a topic, until told to stop."""
    handlers = applier if topic in applier.topics else None
    fleet = Fleet(dsn, handlers, topics=[topic], workers=THREADS)
    fleet.start()
    ready.set()
    stop.wait(120)
    fleet.end(10)
