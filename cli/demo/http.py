"""As much of HTTP/1.1 as the demo's service A and its front need: POSTs over connections that are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Message:
    """A request or an answer.

    Attributes:
        start: its first line.
        headers: the names in lower case.
    """

    start: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def path(self) -> str:
        """Of a request."""
        return self.start.split(" ")[1]

    @property
    def status(self) -> int:
        """Of an answer."""
        return int(self.start.split(" ")[1])


async def read_message(reader: asyncio.StreamReader) -> Message | None:
    """Read a message that says its length; None where the other side has closed the connection."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        start, *lines = head.strip().split("\r\n")
        fields = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in fields}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    return Message(start, headers, body)


def write_message(writer: asyncio.StreamWriter, start: str, headers: Mapping[str, str], body: bytes) -> None:
    """Send a message; its length is added."""
    fields = {**headers, "content-length": str(len(body))}
    lines = [start, *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    writer.write("\r\n".join(lines).encode("latin-1") + body)


class Client:
    """Sends requests to one server over at most that many connections; first come, first served."""

    def __init__(self, port: int, connections: int) -> None:
        self._port = port
        self._free = asyncio.Semaphore(connections)
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Message:
        """Send a request and return the answer.

        Raises:
            OSError: the server cannot be reached, or was lost: it may have done what it was asked.
        """
        async with self._free:
            reader, writer = (
                self._idle.pop() if self._idle else await asyncio.open_connection(HOST, self._port)
            )
            try:
                write_message(
                    writer, f"{method} {path} HTTP/1.1", {"host": f"{HOST}:{self._port}", **headers}, body
                )
                answer = await read_message(reader)
            except BaseException:
                writer.close()
                raise
            if answer is None:
                writer.close()
                raise ConnectionResetError("the connection was closed without an answer")
            self._idle.append((reader, writer))
            return answer

    async def close(self) -> None:
        """Close the connections that are not in use."""
        for _, writer in self._idle:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        self._idle.clear()
