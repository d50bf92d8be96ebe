"""A service B as a process: what it is posted, it accepts and does in one transaction of its database.

Any number listen on one port; the kernel deals the connections out.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from socketserver import ThreadingMixIn
from types import TracebackType
from typing import Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import psycopg

from inturn.applier import headers
from inturn.applier.receiver import receive
from inturn.schema.errors import RequestRefused, SignatureRefused
from support.forked import Forked
from support.place import TESTS
from support.roles import RECEIVER, as_role

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

#: What a service has: effects in order, and what it was asked for again.
SCHEMA = f"""
    CREATE TABLE effect (id bigserial PRIMARY KEY, key text, seq bigint, name text, payload jsonb);
    CREATE TABLE refused (id bigserial PRIMARY KEY, key text, seq bigint, epoch bigint);
    GRANT SELECT, INSERT ON effect, refused TO {RECEIVER};
    GRANT USAGE ON effect_id_seq, refused_id_seq TO {RECEIVER};
"""

Start = Callable[[str, list[tuple[str, str]]], Any]


class Service:
    """The WSGI application.

    A command named `flaky` is refused at its first attempt.

    Args:
        dsn: its database.
        guarded: whether it heeds what accept answers.
        signed: whether it takes only what is signed.
    """

    def __init__(self, dsn: str, *, guarded: bool, signed: bool) -> None:
        self._dsn = dsn
        self._guarded = guarded
        self._secret = SECRET if signed else None

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        status, more = self._answer(environ, body)
        start(status, [("Content-Type", "text/plain"), ("Content-Length", "0"), *more])
        return []

    def _answer(self, environ: dict[str, Any], body: bytes) -> tuple[str, list[tuple[str, str]]]:
        try:
            received = receive(environ, body, secret=self._secret)
        except SignatureRefused:
            return "401 Unauthorized", []
        except RequestRefused:
            return "400 Bad Request", []
        if received.name == "flaky" and received.attempt == 1:
            return "503 Service Unavailable", []
        with psycopg.connect(self._dsn) as connection:  # commits at the end of the block
            if not received.accept(connection) and self._guarded:
                connection.execute(
                    "INSERT INTO refused (key, seq, epoch) VALUES (%s, %s, %s)",
                    (received.key, received.seq, received.epoch),
                )
                return "409 Conflict", [(headers.OUTCOME, headers.ALREADY_APPLIED)]
            connection.execute(
                "INSERT INTO effect (key, seq, name, payload) VALUES (%s, %s, %s, %s)",
                (received.key, received.seq, received.name, body.decode()),
            )
        return "200 OK", []


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()


class _Silent(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002 - the library's name


class Process:
    """A module of support as a process, which says when it is ready; leaving its block kills it."""

    def __init__(self, module: str, *args: str) -> None:
        ours, theirs = os.pipe()
        self._output = os.fdopen(ours)
        with Path(os.devnull).open() as nothing:
            streams = [nothing.fileno(), theirs, 2]
            environment = {**os.environ, "PYTHONPATH": str(TESTS)}
            self._popen = Forked([*args], environment, streams, module=module)
        os.close(theirs)
        assert self._output.readline() == "ready\n"

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def send(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()
        self._output.close()


def receiving(dsn: str, port: int, *, guarded: bool = True, signed: bool = True) -> Process:
    """Start a process of the service; the owner's database: with the receiver's login."""
    options = [name for name, wanted in (("guarded", guarded), ("signed", signed)) if wanted]
    return Process("support.receiving", as_role(dsn, RECEIVER), str(port), *options)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _main(args: Sequence[str]) -> None:
    dsn, port, *options = args
    server = _Server(("127.0.0.1", int(port)), _Silent)
    server.set_app(Service(dsn, guarded="guarded" in options, signed="signed" in options))
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    _main(sys.argv[1:])
