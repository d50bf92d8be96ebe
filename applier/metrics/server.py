"""MetricsServer: answers scrapes by HTTP in threads of its own; no client slows the appliers down."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

log = logging.getLogger("inturn.applier")

#: So many clients at a time; a further one is turned away at once.
MOST_CLIENTS = 8
#: How long a client may take from its connection to the last octet of the answer, in seconds.
CLIENT_SECONDS = 20.0
#: How long an answer is given again: many scrapers cost the database no more than one.
FRESH_SECONDS = 1.0


#: Gives the text of a scrape and its content type, for a header Accept.
Said: TypeAlias = Callable[[str], tuple[bytes, str]]


class MetricsServer:
    """The server of one process. It answers GET /metrics.

    Args:
        host, port: where it listens; port 0: any that is free.
        read: finds out what is to be said, and returns what gives the text of a scrape and its content type
            for a header Accept.

    Raises:
        OSError: it cannot listen there.
    """

    def __init__(self, host: str, port: int, read: Callable[[], Said]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._kept: tuple[float, Said] | None = None
        self._server = _Server(_family(host), (host, port), self._answer)
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="inturn-metrics", daemon=True, args=(0.1,)
        )

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Answer nobody any more."""
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, accept: str) -> tuple[bytes, str]:
        with self._lock:  # one scrape at a time asks the database
            if self._kept is None or time.monotonic() - self._kept[0] > FRESH_SECONDS:
                said = self._read()
                self._kept = time.monotonic(), said
            return self._kept[1](accept)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


class _Server(ThreadingHTTPServer):
    """With a bound on clients and on their time."""

    daemon_threads = True
    block_on_close = False
    # Two processes may not share the port: a scrape would meet now one, now the other.
    allow_reuse_port = False
    request_queue_size = 64

    def __init__(
        self,
        family: socket.AddressFamily,
        address: tuple[str, int],
        answer: Said,
    ) -> None:
        self.address_family = family
        self.answer = answer
        self._slots = threading.BoundedSemaphore(MOST_CLIENTS)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind, without looking up the host's name as HTTPServer does: a dead name server would stop it."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._slots.release()  # no thread could be started, so none gives the slot back
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        # The time of each read is bounded too, but there may be many.
        over = threading.Timer(CLIENT_SECONDS, _cut, (request,))
        over.daemon = True
        try:
            over.start()
            super().process_request_thread(request, client_address)
        finally:
            over.cancel()
            self.shutdown_request(request)  # again, unless no timer could be started
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - its signature
        """Say nothing of clients that went away."""
        log.debug("a scrape of metrics failed", exc_info=True)


def _cut(request: socket.socket) -> None:
    try:
        request.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it has ended meanwhile


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 5.0
    server_version, sys_version = "inturn", ""

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404, "Metrics are at /metrics")
            return
        try:
            body, content_type = self.server.answer(self.headers.get("Accept", ""))
        except Exception:
            log.exception("metrics cannot be served")
            self.send_error(500, "Metrics cannot be served; the log says why")
            return
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        log.debug(format, *args)
