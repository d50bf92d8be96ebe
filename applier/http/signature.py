"""Signature: what signs posts by the Standard Webhooks convention, and where its secrets come from."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from standardwebhooks import Webhook

from inturn.applier.secrets import read_secrets
from inturn.schema.errors import SecretRefused, TargetRefused

SECRET = "INTURN_HTTP_SECRET"  # noqa: S105 - the name of a variable
SECRET_FILE = "INTURN_HTTP_SECRET_FILE"  # noqa: S105 - the name of a variable


class Signer:
    """Signs with one secret, or with several while they are exchanged. It never shows them."""

    def __init__(self, secrets: str, source: str) -> None:
        """Make one.

        Args:
            secrets: as `read_secrets` takes them.
            source: where they come from, for the error.

        Raises:
            TargetRefused: one cannot be used.
        """
        try:
            self._webhooks = [Webhook(secret) for secret in read_secrets(secrets)]
        except SecretRefused as error:
            raise TargetRefused(
                f"{source} holds no secret that can be used: {error.message}",
                hint=f"{error.hint}; several with a space between",
            ) from None

    def sign(self, message_id: str, body: str, unix_seconds: int) -> dict[str, str]:
        """Return the headers webhook-id, webhook-timestamp and webhook-signature."""
        at = datetime.fromtimestamp(unix_seconds, UTC)
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(unix_seconds),
            "webhook-signature": " ".join(webhook.sign(message_id, at, body) for webhook in self._webhooks),
        }


def _variable(topic: str) -> str:
    return f"{SECRET}_{re.sub(r'[^A-Z0-9]', '_', topic.upper())}"


def signer_of(
    topic: str, environment: Mapping[str, str] = os.environ, posted: Iterable[str] = ()
) -> Signer | None:
    """Return what signs the posts of a topic, None when no secret is set.

    The first that is set decides: INTURN_HTTP_SECRET_TOPIC (TOPIC in upper case, with _ for all but letters
    and digits), INTURN_HTTP_SECRET, the file that INTURN_HTTP_SECRET_FILE names.

    Args:
        posted: all topics that are posted somewhere.

    Raises:
        TargetRefused: the file cannot be read, or what is set is not a secret, or is another topic's too.
    """
    own = _variable(topic)
    sharing = sorted(other for other in posted if other != topic and _variable(other) == own)
    if sharing and own in environment and own != SECRET_FILE:
        raise TargetRefused(
            f"{own} is the secret of topic {topic!r} and of {sharing[0]!r}: "
            "whoever receives one could sign the other",
            hint="Give one of them another name, or sign both with INTURN_HTTP_SECRET knowingly",
            topic=topic,
        )
    for name in (own, SECRET):
        if name in environment and name != SECRET_FILE:
            return Signer(environment[name], name)
    if SECRET_FILE not in environment:
        return None
    try:
        text = Path(environment[SECRET_FILE]).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise TargetRefused(f"the file that {SECRET_FILE} names cannot be read: {reason}") from None
    return Signer(text, SECRET_FILE)
