"""Signature: what signs posts by the Standard Webhooks convention, and where its secrets come from."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from standardwebhooks import Webhook

from inturn.schema.errors import TargetRefused

SECRET = "INTURN_HTTP_SECRET"  # noqa: S105 - the name of a variable
SECRET_FILE = "INTURN_HTTP_SECRET_FILE"  # noqa: S105 - the name of a variable


class Signer:
    """Signs with one secret, or with several while they are exchanged. Never shows them."""

    def __init__(self, secrets: list[str], source: str) -> None:
        """Make one.

        Args:
            secrets: base64, with or without the prefix whsec_.
            source: where they come from, for the error.

        Raises:
            TargetRefused: one cannot be used.
        """
        try:
            self._webhooks = [Webhook(_key(secret)) for secret in secrets]
        except Exception:  # noqa: BLE001 - whatever it is, the secret may be in it
            self._webhooks = []
        if not self._webhooks:
            raise TargetRefused(
                f"{source} holds no secret that can be used",
                hint="Write whsec_ and base64, as Standard Webhooks has it; several with a space between",
            )

    def sign(self, message_id: str, body: str, unix_seconds: int) -> dict[str, str]:
        """Return the headers webhook-id, webhook-timestamp and webhook-signature."""
        at = datetime.fromtimestamp(unix_seconds, UTC)
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(unix_seconds),
            "webhook-signature": " ".join(webhook.sign(message_id, at, body) for webhook in self._webhooks),
        }


def _key(secret: str) -> bytes:
    # The library passes over what is no base64; a mistyped secret would sign all the same.
    text = secret.removeprefix("whsec_").rstrip("=")
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)


def signer_of(topic: str, environment: Mapping[str, str] = os.environ) -> Signer | None:
    """Return what signs the posts of a topic, None when no secret is set.

    The first that is set decides: INTURN_HTTP_SECRET_TOPIC (TOPIC in upper case, with _ for all but letters
    and digits), INTURN_HTTP_SECRET, the file that INTURN_HTTP_SECRET_FILE names.

    Raises:
        TargetRefused: the file cannot be read, or what is set is no secret.
    """
    own = f"{SECRET}_{re.sub(r'[^A-Z0-9]', '_', topic.upper())}"
    for name in (own, SECRET):
        if name in environment and name != SECRET_FILE:
            return Signer(environment[name].split(), name)
    if SECRET_FILE not in environment:
        return None
    try:
        text = Path(environment[SECRET_FILE]).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise TargetRefused(f"the file that {SECRET_FILE} names cannot be read: {reason}") from None
    return Signer(text.split(), SECRET_FILE)
