"""A command in HTTP: the headers of a post, which an applier writes and a receiver reads.

The text of a topic, a key or a name goes as percent-encoded UTF-8: a header holds no more than ASCII.
"""

from __future__ import annotations

import uuid
from typing import Final
from urllib.parse import quote, unquote

#: What command_id gives: the same at every attempt, and for no other command.
IDEMPOTENCY_KEY: Final = "Idempotency-Key"
TOPIC: Final = "Inturn-Topic"
KEY: Final = "Inturn-Key"
SEQ: Final = "Inturn-Seq"
EPOCH: Final = "Inturn-Epoch"
COMMAND: Final = "Inturn-Command"
ATTEMPT: Final = "Inturn-Attempt"

#: In an answer with status 409: the command took effect before.
OUTCOME: Final = "Inturn-Outcome"
ALREADY_APPLIED: Final = "already-applied"

#: The signature, by the Standard Webhooks convention: of id, timestamp and body. The id is what command_id
#: gives, and so a signature says for which command the body is. The epoch and the attempt are not signed.
WEBHOOK_ID: Final = "webhook-id"
WEBHOOK_TIMESTAMP: Final = "webhook-timestamp"
WEBHOOK_SIGNATURE: Final = "webhook-signature"

_NAMESPACE = uuid.UUID("6e2b6a0e-58d5-5a0b-9f0c-6a1f5f0f7a11")
_VISIBLE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")


def encode(text: str) -> str:
    """Return text as a header holds it: percent-encoded UTF-8, with visible ASCII but % as it is."""
    return quote(text, safe=_VISIBLE)


def decode(value: str) -> str:
    """Return the text that a header holds.

    Raises:
        UnicodeDecodeError: it is not percent-encoded UTF-8.
    """
    return unquote(value, errors="strict")


def command_id(topic: str, key: str, seq: int, name: str) -> str:
    """Return what the headers Idempotency-Key and webhook-id say: which command it is.

    The name is in it because the id is signed: an insert is not to be posted as a delete by somebody else.
    """
    # No text in PostgreSQL holds a NUL: two commands never read the same.
    return str(uuid.uuid5(_NAMESPACE, f"{topic}\0{key}\0{seq}\0{name}"))
