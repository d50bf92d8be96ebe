"""A service by TLS whose answers are bytes that a test gives, those beneath the TLS too."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from inturn.applier.http import connections

#: Of localhost, until 2119. It guards nothing.
CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgjXaNENUKGsGdb19N
CArXEG6bIOdmg2g1AycfOGw6I92hRANCAAR9Pb2Okzk8q+hQ8IPk7QXHxBp6nY41
bNyqc7Kki5kipqP4wjXaqvwNeLflOOa3qh+UEzmAJ/PRUaDrv0dlOFIE
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBZjCCAQ2gAwIBAgIBATAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlsb2NhbGhv
c3QwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBQxEjAQBgNVBAMM
CWxvY2FsaG9zdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABH09vY6TOTyr6FDw
g+TtBcfEGnqdjjVs3KpzsqSLmSKmo/jCNdqq/A14t+U45reqH5QTOYAn89FRoOu/
R2U4UgSjTjBMMBoGA1UdEQQTMBGCCWxvY2FsaG9zdIcEfwAAATAPBgNVHRMBAf8E
BTADAQH/MB0GA1UdDgQWBBRI5iRieB3RGTAj2//a6AhajpFqqDAKBggqhkjOPQQD
AgNHADBEAiBHCkDAkIgQkvEM+b744JJwG5IgVLy4VQd23O6jlGpHpwIgUekzr+Bm
/b1WyPb3l68A1HvWUvFoegZHbQJl3QvUWXE=
-----END CERTIFICATE-----
"""


@contextmanager
def tls_service(folder: Path, answer: Callable[[ssl.SSLSocket, socket.socket], None]) -> Iterator[str]:
    """Serve posts with the body {}, one a connection; yield where to. `folder / "trust.pem"` is its trust.

    Args:
        answer: is called with the connection, and with the socket beneath it.
    """
    path = folder / "trust.pem"
    path.write_text(CERTIFICATE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    over = threading.Event()
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while not over.is_set():
            plain, _ = listening.accept()
            with suppress(OSError), plain, context.wrap_socket(plain, server_side=True) as connection:
                received = b""
                while not received.endswith(b"{}") and (more := connection.recv(65536)):
                    received += more
                with socket.socket(fileno=os.dup(connection.fileno())) as beneath:
                    answer(connection, beneath)
                    beneath.recv(1)  # until the other side has closed

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    connections._stamps.cache_clear()  # which were those of another trust, of a test just before
    try:
        yield f"https://127.0.0.1:{listening.getsockname()[1]}/"
    finally:
        over.set()
        socket.create_connection(listening.getsockname()).close()
        thread.join(30)
        listening.close()
