"""HttpEffect: posts commands to a service, and reads from its answer what became of them."""

from __future__ import annotations

import asyncio
import re
from typing import Any
from urllib.parse import quote, unquote

import httpx2

from inturn.applier import headers as names
from inturn.applier.command import ClaimedCommand
from inturn.applier.failure import storable
from inturn.applier.http.answer import close, meaning, read, shown
from inturn.applier.http.connections import IDLE_SECONDS, Connection, Connections
from inturn.applier.http.signature import Signer
from inturn.applier.outside.effect import Failed, LeaseOver, Timeouts
from inturn.applier.outside.leases import Lease
from inturn.applier.verdict import Hold, Requested

_SEPARATOR = re.compile(r"[/\\]")


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
        self._connections = Connections()

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
        watch = _Watch(lease)
        try:
            return await self._ask(url, order, watch)
        except asyncio.CancelledError:
            # By the topic's timeout, or when the applier ends. Once the status has come, that decides.
            if watch.response is None:
                raise
            return meaning(url, watch.response, b"", lease)
        except TimeoutError:
            return Failed(f"POST {shown(url)}: no answer within {self._timeouts.whole:g} s", outage=True)
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.LocalProtocolError) as error:
            return Failed(storable(f"POST {shown(url)}: {error}"), Requested(Hold.sqlstate))
        except (httpx2.TransportError, OSError, ValueError) as error:
            what = str(error) or type(error).__name__
            return Failed(storable(f"POST {shown(url)}: {what}"), outage=True)
        finally:
            watch.response = None  # or each would keep the other, and the payload, for long

    async def tidy(self) -> None:
        """Close the connections that were idle for long."""
        await self._connections.close_idle(IDLE_SECONDS)

    async def close(self) -> None:
        """Close all connections."""
        await self._connections.close()

    async def _ask(self, url: str, order: ClaimedCommand, watch: _Watch) -> Failed | None:
        async with asyncio.timeout(self._timeouts.whole) as limit:
            try:
                return await self._post(url, order, watch, limit)
            except _Stale:
                # The service closed a kept connection just then: asking on a new one is not a failure.
                return await self._post(url, order, watch, limit, fresh=True)

    async def _post(
        self, url: str, order: ClaimedCommand, watch: _Watch, limit: asyncio.Timeout, *, fresh: bool = False
    ) -> Failed | None:
        watch.connected = False
        request = self._request(url, order, watch)
        connection = Connection() if fresh else await self._connections.take()
        kept = connection.used
        reusable = False
        try:
            response = await connection.transport.handle_async_request(request)
            limit.reschedule(None)  # its status decides; the rest is read for a bounded time
            watch.response = response
            whole = False
            try:
                start, whole = await read(response)
            finally:
                await close(response)
            reusable = whole  # unless what came meanwhile has left it open
            return meaning(url, response, start, watch.lease)
        except (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError) as error:
            if kept and not watch.connected and not _is_garbled(error):
                raise _Stale from error
            raise
        finally:
            if reusable and connection.clean:
                await self._connections.give_back(connection)
            else:
                await connection.close()

    def _request(self, url: str, order: ClaimedCommand, watch: _Watch) -> httpx2.Request:
        return httpx2.Request(
            "POST",
            url,
            content=order.payload.encode(),
            headers=self._headers(order, watch.lease),
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


def _climbs(template: str, url: str) -> bool:
    """Whether what was put in the place of {name} and {key} leads up the path.

    Many a server decodes %2F, and then goes by what is between: so a part of a key does as a segment does.
    """
    segments = zip(shown(template).split("/"), shown(url).split("/"), strict=True)
    put = [unquote(after) for before, after in segments if "{" in before]
    return any(part in {".", ".."} for text in put for part in _SEPARATOR.split(text))


def _is_garbled(error: httpx2.TransportError) -> bool:
    """Whether something came that is not HTTP: the service is there, and may have read the post."""
    # It holds what the parser said; where the connection was closed there is but a text.
    said = getattr(error.__cause__, "args", ())
    return isinstance(error, httpx2.RemoteProtocolError) and any(isinstance(one, Exception) for one in said)


class _Stale(Exception):
    """A kept connection turned out to be closed before an answer came."""


class _Watch:
    """Sees a post through: refuses to begin it once the lease is over.

    Attributes:
        connected: it has a connection of its own, not a kept one.
        response: what was answered, once the status has come.
    """

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.connected = False
        self.response: httpx2.Response | None = None

    async def see(self, event: str, _info: dict[str, Any]) -> None:
        if event == "connection.connect_tcp.started":
            self.connected = True
        # After the connect, which may take long: what is sent now is the first that the service sees.
        elif event == "http11.send_request_headers.started" and not self.lease.alive():
            raise LeaseOver
