"""Secrets that sign posts: senders and receivers use the same rule, that of Standard Webhooks."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from inturn.schema.errors import SecretRefused

PREFIX = "whsec_"
#: How many octets a secret has, and how many secrets may be in use at a time, while they are exchanged.
SHORTEST, LONGEST, MOST = 24, 64, 10
HOW = f"Write whsec_ and base64 of {SHORTEST} to {LONGEST} octets, as: echo whsec_$(openssl rand -base64 32)"


def read_secrets(given: str | Sequence[str]) -> list[bytes]:
    """Return secrets as octets.

    Args:
        given: one, or several with white space between or as a sequence: all of them sign, any of them
            verifies. Each is base64, with or without the prefix whsec_.

    Raises:
        SecretRefused: there is none or more than MOST, or one cannot be used. It is not quoted.
    """
    texts = [text for each in ([given] if isinstance(given, str) else given) for text in each.split() or [""]]
    if not 1 <= len(texts) <= MOST:
        raise SecretRefused(
            f"{len(texts)} secrets for signatures were given; 1 to {MOST} are allowed", hint=HOW
        )
    return [_read(text) for text in texts]


def _read(text: str) -> bytes:
    # Other readers pass over what is not base64; a mistyped secret would sign all the same.
    encoded = text.removeprefix(PREFIX).rstrip("=")
    try:
        secret = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except ValueError:
        raise SecretRefused("a secret for signatures is not base64", hint=HOW) from None
    if not SHORTEST <= len(secret) <= LONGEST:
        raise SecretRefused(
            f"a secret for signatures has {len(secret)} octets; {SHORTEST} to {LONGEST} are allowed", hint=HOW
        )
    return secret
