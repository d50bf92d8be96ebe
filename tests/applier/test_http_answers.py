"""What an answer over HTTP says once its status has come, whatever happens to the rest of it."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import pytest
from support.b_server import TOPIC, B, Gate, Post
from support.tls import tls_service

from inturn.applier.command import ClaimedCommand
from inturn.applier.http import effect
from inturn.applier.http.effect import HttpEffect
from inturn.applier.outside.effect import Failed, Timeouts
from inturn.applier.outside.leases import Lease

WHOLE = 2.0


def _order(seq: int) -> tuple[ClaimedCommand, Lease]:
    """Return a command, and a lease that lasts."""
    order = ClaimedCommand(TOPIC, "a", seq, "x", "{}", datetime.now(UTC), 1, 1)
    return order, Lease(TOPIC, "a", 1, 3600.0, time.monotonic() + 3600, 0.0)


def post(address: str, timeouts: Timeouts) -> Failed | None:
    """Post a command; return what failed."""

    async def run() -> Failed | None:
        target = HttpEffect(address, None, timeouts)
        try:
            return await target.apply(*_order(1))
        finally:
            await target.close()

    return asyncio.run(run())


def test_a_200_counts_though_the_time_of_the_post_ends_before_its_body(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("inturn.applier.http.answer.ANSWER_SECONDS", 3600.0)

    async def say(_: Post, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{")
        await asyncio.sleep(WHOLE * 1.1)
        return False

    with B(say) as b:
        assert post(b.url, Timeouts(60, 60, WHOLE)) is None


@pytest.mark.parametrize("during", ["read", "close"])
def test_the_status_counts_though_the_time_of_the_command_ends_before_the_body(
    monkeypatch: pytest.MonkeyPatch, during: str
) -> None:
    """Whatever cancels the rest: the service has said that it applied, or what was wrong."""
    monkeypatch.setattr("inturn.applier.http.answer.ANSWER_SECONDS", 3600.0)
    there: asyncio.Event | None = None
    gate = Gate()
    usual = getattr(effect, during)

    async def waiting(response: httpx2.Response) -> object:
        assert there is not None
        there.set()
        if during == "close":
            await asyncio.Event().wait()
        return await usual(response)

    monkeypatch.setattr(effect, during, waiting)

    async def say(post: Post, writer: asyncio.StreamWriter) -> bool:
        status, length = (200 if post.seq == 1 else 500), 2 if during == "read" else 1
        writer.write(b"HTTP/1.1 %d Said\r\ncontent-length: %d\r\n\r\n{" % (status, length))
        await gate.passed()
        return False

    async def cut(address: str, seq: int) -> Failed | None:
        nonlocal there
        there = asyncio.Event()
        target = HttpEffect(address, None, Timeouts())
        task = asyncio.create_task(target.apply(*_order(seq)))
        await there.wait()
        task.cancel()
        failed = await task
        await target.close()
        for _ in range(2):  # a closed transport lets go of its socket a round of the loop later
            await asyncio.sleep(0)
        return failed

    with B(say) as b:
        try:
            assert asyncio.run(cut(b.url, 1)) is None
            failed = asyncio.run(cut(b.url, 2))
            assert failed is not None
            assert failed.error == f"POST {b.url}: 500 Said"
        finally:
            gate.open()


def test_a_200_counts_though_what_follows_is_no_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(connection: ssl.SSLSocket, beneath: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{")
        beneath.sendall(b"no record of TLS")

    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "trust.pem"))
    with tls_service(tmp_path, answer) as address:
        assert post(address, Timeouts()) is None


def test_a_certificate_that_is_put_into_the_trust_store_is_trusted_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inturn.applier.http.connections.TRUST_SECONDS", 1e-9)

    def say_ok(connection: ssl.SSLSocket, _: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    store = tmp_path / "store.pem"
    store.write_text("")
    monkeypatch.setenv("SSL_CERT_FILE", str(store))
    with tls_service(tmp_path, say_ok) as address:
        failed = post(address, Timeouts())
        assert failed is not None
        assert "certificate verify failed" in failed.error
        store.write_text((tmp_path / "trust.pem").read_text())
        assert post(address, Timeouts()) is None
