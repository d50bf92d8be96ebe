"""A TCP proxy on loopback that cuts the network at a chosen moment."""

from __future__ import annotations

import select
import socket
import threading
from types import TracebackType
from typing import Literal, Self

from psycopg.conninfo import make_conninfo

from support.server import Server


class Proxy:
    """Stands between clients and a server; `cut_at` arms it for one cut.

    Attributes:
        cuts: how many connections it has cut at the armed moment.
    """

    def __init__(self, server: Server) -> None:
        self._target = ("127.0.0.1", server.port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.cuts = 0
        self._armed: tuple[bytes, Literal["request", "reply"]] | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def dsn(self, dbname: str) -> str:
        """Return the connection string of a database, by the proxy."""
        return make_conninfo(
            host="127.0.0.1",
            port=self.port,
            user="postgres",
            dbname=dbname,
            sslmode="disable",
            gssencmode="disable",
        )

    def cut_at(self, statement: bytes, what: Literal["request", "reply"]) -> None:
        """Cut the next connection that sends this: the request before it arrives, or the reply to it."""
        with self._lock:
            self._armed = (statement, what)

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
        with client, socket.create_connection(self._target) as server:
            swallow_reply = False
            while not self._over.is_set():
                readable = select.select([client, server], [], [], 0.05)[0]
                for one in readable:
                    try:
                        data = one.recv(65536)
                    except ConnectionError:
                        return
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

    def _disarm(self, data: bytes) -> Literal["request", "reply"] | None:
        with self._lock:
            if self._armed is None or self._armed[0] not in data:
                return None
            what = self._armed[1]
            self._armed = None
            return what
