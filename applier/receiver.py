"""The receiving end of a post: which command it brings, and whether the command is to take effect now.

For a service that applies another one's commands, with any web framework: it needs the headers and the body::

    received = receive(headers, body, secret=secret)  # raises RequestRefused
    with connection.transaction():
        if received.accept(connection):
            ...  # the effect

The signature covers the body and, by the webhook-id, the topic, the key, the seq and the name. It does not
cover the epoch and the attempt: on a network that others can write to, use TLS.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from inturn.applier import accepting
from inturn.applier import headers as names
from inturn.applier.accepting import AnyAsyncConnection, AnyConnection
from inturn.applier.secrets import read_secrets
from inturn.schema.errors import (
    BodyRefused,
    HeaderMissing,
    HeaderRefused,
    InturnError,
    NotInTransaction,
    RequestRefused,
    SchemaNameRefused,
    SecretRefused,
    SignatureRefused,
)
from inturn.schema.source import DEFAULT_SCHEMA

__all__ = [
    "BodyRefused",
    "HeaderMissing",
    "HeaderRefused",
    "InturnError",
    "NotInTransaction",
    "Received",
    "RequestRefused",
    "SchemaNameRefused",
    "SecretRefused",
    "SignatureRefused",
    "receive",
]


@runtime_checkable
class HasItems(Protocol):
    """A mapping, or what a web framework has for one."""

    def items(self) -> Iterable[tuple[Any, Any]]:
        """Return pairs of name and value."""


Headers: TypeAlias = "HasItems | Iterable[tuple[Any, Any]]"
_SIGNATURE = (names.WEBHOOK_ID, names.WEBHOOK_TIMESTAMP, names.WEBHOOK_SIGNATURE)
_NUMBER = re.compile("[0-9]{1,19}")
_LARGEST = 2**63 - 1  # of a bigint


@dataclass(frozen=True, slots=True)
class Received:
    """One command of a key, as it was received.

    Attributes:
        topic, key, seq: which command it is.
        epoch: the number of the turn in which the applier posted it; it grows with every turn of the key.
        name: what it is called.
        attempt: 1 at the first try, 2 after one failure, and so on.
        body: the payload, as JSON in UTF-8.
    """

    topic: str
    key: str
    seq: int
    epoch: int
    name: str
    attempt: int
    body: bytes

    @property
    def payload(self) -> Any:
        """The JSON value, made anew each time.

        Raises:
            BodyRefused: it is not JSON.
        """
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise BodyRefused(
                f"the body is not JSON: {error}", topic=self.topic, key=self.key, seq=self.seq
            ) from None

    def accept(self, connection: AnyConnection, *, schema: str = DEFAULT_SCHEMA) -> bool:
        """Record the command as accepted, and say whether it is to take effect now: the SQL function accept.

        Call it in the transaction of the effect, before the effect: both are committed or rolled back
        together. Other requests for the key wait until the transaction ends.

        Args:
            connection: psycopg's Connection, SQLAlchemy's Connection, Session or scoped_session, or a DBAPI
                cursor, in the transaction of the effect.
            schema: the schema in which the receiver is installed.

        Returns:
            True: make the effect and commit. False: the command took effect before, or this request comes
            too late; do nothing.

        Raises:
            NotInTransaction: the connection is in autocommit, which would commit accept without the effect.
            SchemaNameRefused: no schema of inturn can have this name.
            TypeError: it is neither a connection nor a cursor, or an async one.
            psycopg.Error, sqlalchemy.exc.DBAPIError or the driver's own: what the database says.
        """
        return accepting.accept(connection, self._place(), schema)

    async def accept_async(self, connection: AnyAsyncConnection, *, schema: str = DEFAULT_SCHEMA) -> bool:
        """Do what `accept` does, on psycopg's AsyncConnection or AsyncCursor, or SQLAlchemy's async kinds."""
        return await accepting.accept_async(connection, self._place(), schema)

    def _place(self) -> dict[str, str | int]:
        return {"topic": self.topic, "key": self.key, "seq": self.seq, "epoch": self.epoch}


def receive(headers: Headers, body: bytes, *, secret: str | Sequence[str] | None) -> Received:
    """Check a request's signature, and return the command that the request brings.

    Args:
        headers: those of the request: a mapping, pairs of text or of bytes (ASGI's), or a WSGI environ.
        body: that of the request, unchanged.
        secret: what the applier has in INTURN_HTTP_SECRET, as `whsec_...`. While you replace the secret, give
            both, with a space between them or as a sequence: either is accepted. None accepts any request,
            signed or not, for a network where nobody else can post.

    Raises:
        SignatureRefused: the request is not signed, is signed with another secret, was altered in transit, or
            its time is more than 5 minutes away from this machine's.
        HeaderMissing: a header is missing that every applier sends.
        HeaderRefused: a header is there twice, or cannot be read.
        SecretRefused: a secret cannot be used.
        ImportError: the extra is not installed: pip install 'inturn[receiver]'.
    """
    given = _Given(headers)
    if secret is not None:
        _verify(given, body, secret)
    received = Received(
        topic=given.text(names.TOPIC),
        key=given.text(names.KEY),
        seq=given.number(names.SEQ),
        epoch=given.number(names.EPOCH),
        name=given.text(names.COMMAND),
        attempt=given.number(names.ATTEMPT),
        body=bytes(body),
    )
    signed = names.command_id(received.topic, received.key, received.seq, received.name)
    if secret is not None and given.value(names.WEBHOOK_ID) != signed:
        raise SignatureRefused(
            f"the signature is that of another command: {given.value(names.WEBHOOK_ID):.200}",
            topic=received.topic,
            key=received.key,
            seq=received.seq,
        )
    return received


class _Given:
    """The headers of a request, by name in lower case."""

    def __init__(self, headers: Headers) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in _pairs(headers):
            self._values.setdefault(name, []).append(value)

    def value(self, name: str) -> str:
        """Return a header's value.

        Raises:
            HeaderMissing, HeaderRefused: it is not there exactly once.
        """
        values = self._values.get(name.lower(), [])
        if not values:
            raise HeaderMissing(f"the request has no header {name}", hint="An applier of inturn sends it")
        if len(values) > 1:
            raise HeaderRefused(f"the request has the header {name} {len(values)} times")
        return values[0]

    def text(self, name: str) -> str:
        try:
            text = names.decode(self.value(name))
        except UnicodeDecodeError:
            raise HeaderRefused(f"the header {name} is not percent-encoded UTF-8") from None
        if "\0" in text:
            raise HeaderRefused(f"the header {name} holds a NUL, which no text of PostgreSQL does")
        return text

    def number(self, name: str) -> int:
        value = self.value(name)
        if not _NUMBER.fullmatch(value) or int(value) > _LARGEST:
            raise HeaderRefused(f"the header {name} is not a number: {value:.40}")
        return int(value)


def _pairs(headers: Headers) -> Iterator[tuple[str, str]]:
    pairs = headers.items() if isinstance(headers, HasItems) else headers
    for name, value in pairs:
        known = (name.decode("latin-1") if isinstance(name, bytes) else str(name)).lower()
        if known.startswith("http_"):  # WSGI's
            known = known.removeprefix("http_").replace("_", "-")
        yield known, value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _verify(given: _Given, body: bytes, secrets: str | Sequence[str]) -> None:
    try:
        from standardwebhooks import Webhook, WebhookVerificationError
    except ImportError as error:
        raise ImportError(
            "a signature cannot be verified without standardwebhooks: pip install 'inturn[receiver]'"
        ) from error
    webhooks = [Webhook(one) for one in read_secrets(secrets)]
    try:
        signature = {name: given.value(name) for name in _SIGNATURE}
    except HeaderMissing as error:
        raise SignatureRefused(f"the request is not signed: {error.message}") from None
    problem = ""
    for webhook in webhooks:
        try:
            webhook.verify(body, signature, json_parse=False)
        except (WebhookVerificationError, ValueError) as error:  # ValueError: a signature that cannot be read
            problem = str(error) if isinstance(error, WebhookVerificationError) else "it cannot be read"
        else:
            return
    raise SignatureRefused(
        f"the signature of {signature[names.WEBHOOK_ID]:.200} is refused: {problem}",
        hint="Compare the secret on both sides, and the clocks",
    )
