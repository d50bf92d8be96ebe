"""Answer: how much of a service's answer is read, and what it says became of the command."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC
from email.utils import parsedate_to_datetime

import httpx2

from inturn.applier import headers as names
from inturn.applier.failure import storable
from inturn.applier.outside.effect import Failed
from inturn.applier.outside.leases import Lease
from inturn.applier.verdict import Hold, Requested, Retry

#: Beside 5xx: it may work later. All other answers but 2xx will not change by asking again.
RETRY_STATUSES = frozenset({408, 425, 429})
#: The longest wait that a service may ask for by Retry-After, in seconds.
LONGEST_RETRY_AFTER = 3600.0
#: How much of an answer is read, and for how long; then its connection is closed. Only answers that say a
#: failure are kept, in part.
ANSWER_BYTES, ANSWER_SECONDS, KEPT_CHARACTERS = 65536, 1.0, 2000


def shown(url: str) -> str:
    """Return an address as it is kept with errors: without its query, in which secrets are easily put."""
    return url.partition("?")[0]


async def read(response: httpx2.Response) -> tuple[bytes, bool]:
    """Return the start of an answer, and whether that was all of it, within bounds of size and time."""
    start = bytearray()
    assert isinstance(response.stream, httpx2.AsyncByteStream)  # noqa: S101 - for mypy: it came from an async transport
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            async for part in response.stream:
                start += part
                if len(start) > ANSWER_BYTES:
                    return bytes(start), False
    except (OSError, httpx2.TransportError):  # OSError: TimeoutError, and an error of TLS
        # Its status has come: that decides.
        return bytes(start), False
    return bytes(start), True


async def close(response: httpx2.Response) -> None:
    """Let go of an answer; what it said is known by now."""
    with contextlib.suppress(Exception):
        await response.aclose()


def meaning(url: str, response: httpx2.Response, start: bytes, lease: Lease) -> Failed | None:
    status = response.status_code
    repeated = response.headers.get(names.OUTCOME) == names.ALREADY_APPLIED
    if response.is_success or (status == httpx2.codes.CONFLICT and repeated):
        return None
    error = f"POST {shown(url)}: {status} {response.reason_phrase}".rstrip()
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
