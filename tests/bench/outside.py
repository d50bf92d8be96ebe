"""One applier's posts a second, against a bare loop of the same client with the same concurrency."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from support.database import Database, until
from support.process import inturn_apply

IN_FLIGHT = 200
_BODY = b'{"amount": 1}'
_HEADERS = {
    "content-type": "application/json",
    "user-agent": "bench",
    "idempotency-key": "7f0e5a52-6b1c-5a3e-9d3c-3a4f2d1c0b9a",
    "inturn-topic": "posts",
    "inturn-key": "k1",
    "inturn-seq": "1",
    "inturn-epoch": "1",
    "inturn-command": "insert",
    "inturn-attempt": "1",
}


@contextmanager
def slow_service(milliseconds: float) -> Iterator[str]:
    """Run a service of its own process that answers after so long; give its address."""
    program = Path(__file__).with_name("slow_service.py")
    process = subprocess.Popen(
        [sys.executable, str(program), str(milliseconds)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/commands"
    finally:
        process.kill()
        process.communicate()


def bare_loop(url: str, seconds: float, *, one_pool: bool = False) -> float:
    """Return the posts a second of an httpx2 loop in a process of its own.

    one_pool: all by one AsyncClient, as a first try would have it; else a client for each in flight, which is
    the fastest that was found.
    """
    code = f"from bench.outside import post_on; print(post_on({url!r}, {seconds}, {one_pool}))"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(found.stdout)


def post_on(url: str, seconds: float, one_pool: bool) -> float:
    return asyncio.run(_post_on(url, seconds, one_pool))


async def _post_on(url: str, seconds: float, one_pool: bool) -> float:
    context = ssl.create_default_context()
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    clients = [
        httpx2.AsyncClient(verify=context, limits=limits, trust_env=False)
        for _ in range(1 if one_pool else IN_FLIGHT)
    ]
    done = 0
    end_at = float("inf")

    async def post(client: httpx2.AsyncClient) -> None:
        nonlocal done
        while time.monotonic() < end_at:
            (await client.post(url, content=_BODY, headers=_HEADERS)).raise_for_status()
            done += 1

    loops = [asyncio.create_task(post(clients[n % len(clients)])) for n in range(IN_FLIGHT)]
    # Not the connecting, nor the start.
    await asyncio.sleep(1)
    begun, started_at = done, time.monotonic()
    end_at = started_at + seconds
    await asyncio.sleep(seconds)
    rate = (done - begun) / (time.monotonic() - started_at)
    await asyncio.gather(*loops)
    return rate


def applier(database: Database, url: str, seconds: float, commands: int) -> tuple[float, float]:
    """Return the posts a second of one `inturn apply`, and the age of the oldest transaction meanwhile."""
    topic = f"posts-{time.monotonic_ns()}"
    database.execute("SELECT inturn.create_topic(%s, %s, max_in_flight => %s)", [topic, url, IN_FLIGHT])
    database.execute(
        "SELECT count(inturn.append(%s, 'k' || k, 'insert', '{\"amount\": 1}'))"
        " FROM generate_series(1, %s) c, generate_series(1, %s) k",
        [topic, commands, 20_000 // commands],
    )
    database.execute("ANALYZE")
    oldest = 0.0
    over = threading.Event()

    def watch() -> None:
        nonlocal oldest
        with database.server.connect(database.name) as connection:
            while not over.wait(0.02):
                row = connection.execute(
                    "SELECT extract(epoch FROM max(clock_timestamp() - xact_start))::float8"
                    " FROM pg_stat_activity WHERE application_name = 'inturn apply'"
                ).fetchone()
                oldest = max(oldest, float(str(row[0])) if row and row[0] is not None else 0.0)

    def done() -> int:
        number: int = database.value(
            "SELECT coalesce(sum(applied_seq), 0)::integer FROM inturn.key_cursor WHERE topic = %s", [topic]
        )
        return number

    watcher = threading.Thread(target=watch)
    with inturn_apply(database.dsn, "--topic", topic, "--quiet", app=None):
        watcher.start()
        until(lambda: done() > 2 * IN_FLIGHT, "at work")
        begun, started_at = done(), time.monotonic()
        time.sleep(seconds)
        rate = (done() - begun) / (time.monotonic() - started_at)
        over.set()
        watcher.join()
    return rate, oldest
