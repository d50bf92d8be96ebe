"""The front of the demo's service B: gives each request to one of the machines behind it."""

from __future__ import annotations

import asyncio
import hashlib
from bisect import bisect
from collections.abc import Callable
from typing import Literal

from inturn.applier import headers as names
from inturn.cli.demo.http import HOST, Client, Message, read_message, write_message

Routing = Literal["round robin", "ring"]

#: How many places each machine has on the ring.
_PLACES = 64


class Front:
    """Listens for requests and passes them on, from then on without machines that are gone.

    Attributes:
        routing: round robin, or by consistent hashing of the key.
        port: where it listens.
    """

    def __init__(self, connections: int, seconds_on_the_way: Callable[[str, int], float]) -> None:
        """Make a front.

        Args:
            connections: how many a machine serves at a time; further requests wait here.
            seconds_on_the_way: how long a request of a key and seq is under way.
        """
        self.routing: Routing = "round robin"
        self.port = 0
        self._connections = connections
        self._seconds_on_the_way = seconds_on_the_way
        self._machines: dict[str, Client] = {}
        self._ring: list[tuple[int, str]] = []
        self._turn = 0
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self, connections: int) -> Client:
        """Start to listen; return a client with that many connections."""
        self._server = await asyncio.start_server(self._serve, HOST, 0, backlog=256)
        self.port = self._server.sockets[0].getsockname()[1]
        return Client(self.port, connections)

    async def close(self) -> None:
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        for machine in list(self._machines):
            await self.remove(machine)

    def add(self, machine: str, port: int) -> None:
        """Send requests to this machine too."""
        self._machines[machine] = Client(port, self._connections)
        self._ring = sorted(self._ring + [(_place(f"{machine}:{n}"), machine) for n in range(_PLACES)])

    async def remove(self, machine: str) -> None:
        """Send no more requests to this machine."""
        self._ring = [place for place in self._ring if place[1] != machine]
        if client := self._machines.pop(machine, None):
            await client.close()

    def choose(self, key: str) -> str | None:
        """Return which machine serves the next request of a key; None: there is none."""
        if not self._machines:
            return None
        if self.routing == "ring":
            return self._ring[bisect(self._ring, (_place(key), "")) % len(self._ring)][1]
        self._turn += 1
        return list(self._machines)[self._turn % len(self._machines)]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for mypy
        self._serving.add(task)
        try:
            while request := await read_message(reader):
                start, body = await self._pass_on(request)
                write_message(writer, start, {"content-type": "application/json"}, body)
        except asyncio.CancelledError:
            pass  # the end; what streams say about a cancelled connection is noise
        finally:
            self._serving.discard(task)
            writer.close()

    async def _pass_on(self, request: Message) -> tuple[str, bytes]:
        key = names.decode(request.headers[names.KEY.lower()])
        seq = int(request.headers[names.SEQ.lower()])
        machine = self.choose(key)
        if machine is None:
            return "HTTP/1.1 503 Service Unavailable", b""
        client = self._machines[machine]
        await asyncio.sleep(self._seconds_on_the_way(key, seq))
        kept = {name: value for name, value in request.headers.items() if name.startswith("inturn-")}
        try:
            answer = await client.ask("POST", request.path, kept, request.body)
        except OSError:
            await self.remove(machine)
            return "HTTP/1.1 502 Bad Gateway", b""
        return answer.start, answer.body


def _place(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
