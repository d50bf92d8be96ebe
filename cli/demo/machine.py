"""A machine of the demo's service B: a process that serves HTTP, `python -m inturn.cli.demo.machine`.

Reads on stdin, in one line of JSON, its name and B's database; writes on stdout the port where it listens;
ends when stdin does, so that it never outlives the demo.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psycopg

from inturn.applier import Fleet
from inturn.applier import headers as names
from inturn.cli.demo.database import MERGED, NUMBERED, machine_dsn
from inturn.cli.demo.http import HOST
from inturn.cli.demo.plan import Call
from inturn.schema.connection import connect

if TYPE_CHECKING:
    from collections.abc import Iterator

#: How many requests a machine serves at a time.
THREADS = 4


class Machine:
    """What a machine does for a request, in each of the ways."""

    def __init__(self, dsn: str) -> None:
        self._connections: queue.LifoQueue[psycopg.Connection[Any]] = queue.LifoQueue()
        for _ in range(THREADS):
            self._connections.put(connect(dsn, for_handlers=True))
        self._threads = ThreadPoolExecutor(THREADS)
        self._lock = threading.Lock()
        self._queues: dict[tuple[str, str], deque[Call]] = {}

    def serve(self, how: str, way: str, call: Call, epoch: int) -> int:
        """Serve a request and return the status to answer."""
        match how:
            case "handle":
                self._handle(way, call)
            case "lock":
                self._handle(way, call, locked=True)
            case "accept":
                self._handle(way, call, epoch=epoch)
            case "queue":
                self._enqueue(way, call)
                return 202
            case "append":
                self._append(way, call)
                return 202
            case _:
                return 404
        return 200

    def queued(self) -> int:
        """Return how many orders have commands in memory, or in hand."""
        with self._lock:
            return len(self._queues)

    def _handle(self, way: str, call: Call, *, locked: bool = False, epoch: int | None = None) -> None:
        """Carry a command out; what takes time comes first, as in the field.

        locked: under a lock of the key, across all machines.
        epoch: only if that is in turn, for the turn that inturn says.
        """
        with self._connection() as connection, connection.transaction():
            if locked:
                connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (call.key,))
            if epoch is not None and connection.execute(
                "SELECT inturn.accept(%s, %s, %s, %s)", (way, call.key, call.seq, epoch)
            ).fetchone() != (True,):
                return
            time.sleep(call.work)
            connection.execute(
                "SELECT carry_out(%s, %s, %s, %s)", (way, call.key, call.seq, call.name), prepare=True
            )

    def _enqueue(self, way: str, call: Call) -> None:
        """Put a command into its order's queue, in memory."""
        with self._lock:
            if waiting := self._queues.get((way, call.key)):
                waiting.append(call)
                return
            self._queues[way, call.key] = deque([call])
        self._threads.submit(self._work_off, way, call.key)

    def _work_off(self, way: str, key: str) -> None:
        waiting = self._queues[way, key]
        while waiting:
            self._handle(way, waiting[0])
            with self._lock:
                waiting.popleft()
                if not waiting:
                    del self._queues[way, key]

    def _append(self, way: str, call: Call) -> None:
        """Append a command at the number that A gave it."""
        with self._connection() as connection:
            connection.execute(
                "SELECT inturn.append(%s, %s, %s, %s, seq => %s)",
                (way, call.key, call.name, json.dumps({"work": call.work}), call.seq),
                prepare=True,
            )

    @contextmanager
    def _connection(self) -> Iterator[psycopg.Connection[Any]]:
        connection = self._connections.get()
        try:
            yield connection
        finally:
            self._connections.put(connection)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    machine: Machine

    def do_GET(self) -> None:
        self._answer(200, json.dumps(self.machine.queued()).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        call = Call(
            key=names.decode(self.headers[names.KEY]),
            seq=int(self.headers[names.SEQ]),
            name=names.decode(self.headers[names.COMMAND]),
            work=body["work"],
        )
        _, how, way = urlsplit(self.path).path.split("/")
        self._answer(self.machine.serve(how, way, call, int(self.headers.get(names.EPOCH, "0"))), b"{}")

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    request_queue_size = 64
    daemon_threads = True


def main() -> None:
    """Be a machine until stdin ends."""
    start = json.loads(sys.stdin.readline())
    dsn = machine_dsn(start["dsn"], start["name"])
    _Handler.machine = Machine(dsn)
    server = _Server((HOST, 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Fleet(dsn, topics=[NUMBERED, MERGED], workers=THREADS).start(warn=False)
    print(server.server_address[1], flush=True)  # noqa: T201 - the demo reads it
    sys.stdin.read()
    os._exit(0)  # whatever is in hand: the demo is over


if __name__ == "__main__":
    main()
