"""A TCP proxy on loopback that cuts the network at a chosen moment, or lets it swallow everything."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Literal, Self

from psycopg.conninfo import make_conninfo

from support.server import Server


class Proxy:
    """Stands between clients and a server; `cut_at` arms it for one cut, `swallow` makes it half-open.

    Attributes:
        cuts: how many connections it has cut at the armed moment.
    """

    def __init__(self, server: Server) -> None:
        self._target = ("127.0.0.1", server.port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.cuts = 0
        self._swallowed: set[socket.socket] = set()
        self._open: set[socket.socket] = set()
        self._armed: tuple[bytes, Literal["request", "reply"]] | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def dsn(self, dbname: str, user: str) -> str:
        """Return the connection string of a database, by the proxy."""
        return make_conninfo(
            host="127.0.0.1",
            port=self.port,
            user=user,
            dbname=dbname,
            sslmode="disable",
            gssencmode="disable",
        )

    def cut_at(self, statement: bytes, what: Literal["request", "reply"]) -> None:
        """Cut the next connection that sends this: the request before it arrives, or the reply to it."""
        with self._lock:
            self._armed = (statement, what)

    def swallow(self) -> None:
        """Deliver nothing any more on the connections that there are, in either direction, and close none.

        What is sent on them is taken and acknowledged. New connections work.
        """
        with self._lock:
            self._swallowed |= self._open

    def __enter__(self) -> Self:
        self._spawn(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._listening.close()

    def _spawn(self, run: object, *args: object) -> None:
        thread = threading.Thread(target=run, args=args)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._over.is_set():
            if select.select([self._listening], [], [], 0.05)[0]:
                client, _ = self._listening.accept()
                self._spawn(self._carry, client)

    def _carry(self, client: socket.socket) -> None:
        # Either side may be gone when something is read from it or sent to it.
        gone = suppress(ConnectionError)
        with gone, client, socket.create_connection(self._target) as server, self._noted(client):
            swallow_reply = False
            while not self._over.is_set():
                readable = select.select([client, server], [], [], 0.05)[0]
                for one in readable:
                    data = one.recv(65536)
                    if client in self._swallowed:
                        if not data:
                            self._over.wait(0.05)  # nor does the end of one side reach the other
                        continue
                    if not data:
                        return
                    if one is server and swallow_reply:
                        # It has answered, so it is done: the client never learns.
                        self.cuts += 1
                        return
                    if one is client:
                        what = self._disarm(data)
                        if what == "request":
                            self.cuts += 1
                            return
                        swallow_reply = swallow_reply or what == "reply"
                    (server if one is client else client).sendall(data)

    @contextmanager
    def _noted(self, client: socket.socket) -> Iterator[None]:
        with self._lock:
            self._open.add(client)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(client)
                self._swallowed.discard(client)

    def _disarm(self, data: bytes) -> Literal["request", "reply"] | None:
        with self._lock:
            if self._armed is None or self._armed[0] not in data:
                return None
            what = self._armed[1]
            self._armed = None
            return what
