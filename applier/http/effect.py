"""HttpEffect: posts commands to a service, and reads from its answer what became of them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ssl
import time
from collections import deque
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import httpx2

from inturn.applier import headers as names
from inturn.applier.command import ClaimedCommand
from inturn.applier.failure import storable
from inturn.applier.http.signature import Signer
from inturn.applier.outside.effect import Failed, LeaseOver, Timeouts
from inturn.applier.outside.leases import Lease
from inturn.applier.verdict import Hold, Requested, Retry

#: Beside 5xx: it may work later. All other answers but 2xx will not change by asking again.
RETRY_STATUSES = frozenset({408, 425, 429})
#: The longest wait that a service may ask for by Retry-After, in seconds.
LONGEST_RETRY_AFTER = 3600.0
#: How much of an answer is read, and for how long; then its connection is closed. Only answers that say a
#: failure are kept, in part.
ANSWER_BYTES, ANSWER_SECONDS, KEPT_CHARACTERS = 65536, 1.0, 2000
#: After how long an idle connection is not used again.
IDLE_SECONDS = 15.0


class HttpEffect:
    """Posts the commands of one topic, over connections that it keeps."""

    def __init__(self, address: str, signer: Signer | None, timeouts: Timeouts) -> None:
        """Make one.

        Args:
            address: where to; {name} in its path is replaced by the command's name, {key} by the key.
            signer: signs the posts; None: they are not signed.
        """
        self._address = address
        self._signer = signer
        self._timeouts = timeouts
        self._connections = _Connections()

    def stops_when_cut(self, order: ClaimedCommand) -> bool:  # noqa: ARG002 - see Effect
        return True  # a post that is cancelled closes its connection

    async def apply(self, order: ClaimedCommand, lease: Lease) -> Failed | None:
        """Post a command; return None when it took effect.

        Raises:
            LeaseOver: the lease ran out before anything was sent.
        """
        url = self._address.replace("{name}", quote(order.name, safe="")).replace(
            "{key}", quote(order.key, safe="")
        )
        if _climbs(self._address, url):
            what = f"the command's name {order.name!r} and key {order.key!r}"
            return Failed(storable(f"{what} make no address"), Requested(Hold.sqlstate))
        try:
            async with asyncio.timeout(self._timeouts.whole):
                try:
                    return await self._post(url, order, lease)
                except _Stale:
                    # The service closed a kept connection just then: asking on a new one is not a failure.
                    return await self._post(url, order, lease, fresh=True)
        except TimeoutError:
            return Failed(f"POST {_shown(url)}: no answer within {self._timeouts.whole:g} s", outage=True)
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.LocalProtocolError) as error:
            return Failed(storable(f"POST {_shown(url)}: {error}"), Requested(Hold.sqlstate))
        except (httpx2.TransportError, OSError, ValueError) as error:
            what = str(error) or type(error).__name__
            return Failed(storable(f"POST {_shown(url)}: {what}"), outage=True)

    async def tidy(self) -> None:
        """Close the connections that were idle for long."""
        await self._connections.close_idle(IDLE_SECONDS)

    async def close(self) -> None:
        """Close all connections."""
        await self._connections.close()

    async def _post(
        self, url: str, order: ClaimedCommand, lease: Lease, *, fresh: bool = False
    ) -> Failed | None:
        connection = _Connection() if fresh else self._connections.take()
        kept = connection.used
        watch = _Watch(lease)
        request = httpx2.Request(
            "POST",
            url,
            content=order.payload.encode(),
            headers=self._headers(order, lease),
            extensions={
                "timeout": {
                    "connect": self._timeouts.connect,
                    "read": self._timeouts.read,
                    "write": self._timeouts.read,
                    "pool": self._timeouts.connect,
                },
                "trace": watch.see,
            },
        )
        reusable = False
        try:
            response = await connection.transport.handle_async_request(request)
            try:
                start, reusable = await _read(response)
            finally:
                await _close(response, reusable)
            return _meaning(url, response, start, lease)
        except (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError) as error:
            if kept and not watch.connected:
                raise _Stale from error
            raise
        finally:
            if reusable:
                await self._connections.give_back(connection)
            else:
                await connection.close()

    def _headers(self, order: ClaimedCommand, lease: Lease) -> dict[str, str]:
        command_id = names.command_id(order.topic, order.key, order.seq, order.name)
        headers = {
            "content-type": "application/json",
            "user-agent": "inturn",
            names.IDEMPOTENCY_KEY: command_id,
            names.TOPIC: names.encode(order.topic),
            names.KEY: names.encode(order.key),
            names.SEQ: str(order.seq),
            names.EPOCH: str(order.epoch),
            names.COMMAND: names.encode(order.name),
            names.ATTEMPT: str(order.attempt),
        }
        if self._signer is not None:
            headers |= self._signer.sign(command_id, order.payload, int(lease.database_time()))
        return headers


def _shown(url: str) -> str:
    """Return an address as it is kept with errors: without its query, in which secrets are easily put."""
    return url.partition("?")[0]


def _climbs(template: str, url: str) -> bool:
    """Whether what was put in the place of {name} and {key} leads up the path."""
    segments = zip(_shown(template).split("/"), _shown(url).split("/"), strict=True)
    return any("{" in before and after in {".", ".."} for before, after in segments)


class _Stale(Exception):
    """A kept connection turned out to be closed before an answer came."""


class _Watch:
    """Sees a post through: refuses to begin it once the lease is over."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self.connected = False

    async def see(self, event: str, _info: dict[str, Any]) -> None:
        if event == "connection.connect_tcp.started":
            self.connected = True
        # After the connect, which may take long: what is sent now is the first that the service sees.
        elif event == "http11.send_request_headers.started" and not self._lease.alive():
            raise LeaseOver


class _Connection:
    """A pool of one: a pool walks over all its connections for every request.

    With 200 in flight that is 1.7 ms of CPU a post instead of 0.9 (httpx2 2.16; httpx 0.28: over 15). It is
    also how a post that found its connection closed is repeated on one that is certainly new.
    """

    def __init__(self) -> None:
        self.transport = httpx2.AsyncHTTPTransport(
            verify=_tls(), limits=httpx2.Limits(max_connections=1, keepalive_expiry=IDLE_SECONDS)
        )
        self.used = False
        self.idle_since = 0.0

    async def close(self) -> None:
        # Even a close that hangs does not keep the key.
        with contextlib.suppress(Exception):
            await self.transport.aclose()


class _Connections:
    """Kept connections to one service, the last used first."""

    def __init__(self) -> None:
        self._idle: deque[_Connection] = deque()
        self._closed = False

    def take(self) -> _Connection:
        return self._idle.pop() if self._idle else _Connection()

    async def give_back(self, connection: _Connection) -> None:
        if self._closed:
            await connection.close()
            return
        connection.used = True
        connection.idle_since = time.monotonic()
        self._idle.append(connection)

    async def close_idle(self, seconds: float) -> None:
        while self._idle and self._idle[0].idle_since <= time.monotonic() - seconds:
            await self._idle.popleft().close()

    async def close(self) -> None:
        """Close the idle ones now, and those in use when they are given back."""
        self._closed = True
        await self.close_idle(0)


@functools.cache
def _tls() -> ssl.SSLContext:
    """Return the system's trust, read once: that takes milliseconds."""
    return ssl.create_default_context()


async def _read(response: httpx2.Response) -> tuple[bytes, bool]:
    """Return the start of an answer, and whether that was all of it, within bounds of size and time."""
    start = bytearray()
    assert isinstance(response.stream, httpx2.AsyncByteStream)  # noqa: S101 - for mypy: it came from an async transport
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            async for part in response.stream:
                start += part
                if len(start) > ANSWER_BYTES:
                    return bytes(start), False
    except (TimeoutError, httpx2.TransportError):
        # Its status has come: that decides.
        return bytes(start), False
    return bytes(start), True


async def _close(response: httpx2.Response, whole: bool) -> None:
    if whole:
        await response.aclose()
    else:
        with contextlib.suppress(Exception):
            await response.aclose()


def _meaning(url: str, response: httpx2.Response, start: bytes, lease: Lease) -> Failed | None:
    status = response.status_code
    repeated = response.headers.get(names.OUTCOME) == names.ALREADY_APPLIED
    if response.is_success or (status == httpx2.codes.CONFLICT and repeated):
        return None
    error = f"POST {_shown(url)}: {status} {response.reason_phrase}".rstrip()
    text = start.decode("utf-8", "replace").strip()
    if text:
        error += f"\n\n{text[:KEPT_CHARACTERS]}" + ("..." if len(text) > KEPT_CHARACTERS else "")
    error = storable(error)
    if status not in RETRY_STATUSES and not response.is_server_error:
        return Failed(error, Requested(Hold.sqlstate))
    after = retry_after(response.headers, lease.database_time())
    asked = Requested(Retry.sqlstate, None if after is None else f"{after:.3f} seconds")
    return Failed(error, asked, outage=response.is_server_error)


def retry_after(headers: httpx2.Headers, now: float) -> float | None:
    """Return the seconds that Retry-After asks to wait, at most LONGEST_RETRY_AFTER; None: nothing readable.

    A date counts from the answer's own Date, otherwise from now, in Unix seconds.
    """
    text = headers.get("retry-after", "").strip()
    if text.isdecimal() and text.isascii():
        return float(min(int(text[:10]), LONGEST_RETRY_AFTER))
    until, since = _date(text), _date(headers.get("date", ""))
    if until is None:
        return None
    return min(max(until - (now if since is None else since), 0.0), LONGEST_RETRY_AFTER)


def _date(text: str) -> float | None:
    try:
        at = parsedate_to_datetime(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
