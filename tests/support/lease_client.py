"""An applier that is not ours, as a process: it claims by lease in SQL and posts to a service."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import psycopg
from standardwebhooks import Webhook

from inturn.applier import headers
from support.receiving import SECRET, Process

_CLAIM = "SELECT topic, key, epoch, attempt, seq, name, payload FROM inturn.claim(%s::text[], 4, NULL, NULL)"
# Another has the key: nothing more of it is ours.
_FENCED = "IT030"


class _Service(NamedTuple):
    port: int
    seconds: float


def lease_client(dsn: str, port: int, *topics: str, seconds: float = 1.0) -> Process:
    """Start one.

    topics: that it serves; `orders` when none is named. seconds: how long a post may take.
    """
    return Process("support.lease_client", dsn, str(port), str(seconds), *(topics or ("orders",)))


def _post(
    service: _Service, topic: str, key: str, epoch: int, attempt: int, seq: int, name: str, payload: Any
) -> int:
    body = json.dumps(payload)
    command_id, now = headers.command_id(topic, key, seq, name), datetime.now(UTC)
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=service.seconds)
    try:
        connection.request(
            "POST",
            "/",
            body,
            {
                headers.TOPIC: headers.encode(topic),
                headers.KEY: headers.encode(key),
                headers.SEQ: str(seq),
                headers.EPOCH: str(epoch),
                headers.COMMAND: headers.encode(name),
                headers.ATTEMPT: str(attempt),
                headers.WEBHOOK_ID: command_id,
                headers.WEBHOOK_TIMESTAMP: str(int(now.timestamp())),
                headers.WEBHOOK_SIGNATURE: Webhook(SECRET).sign(command_id, now, body),
            },
        )
        answer = connection.getresponse()
        answer.read()
        if answer.status == 409 and answer.getheader(headers.OUTCOME) == headers.ALREADY_APPLIED:
            return 200
        return answer.status
    finally:
        connection.close()


def _work(connection: psycopg.Connection[Any], service: _Service, commands: Sequence[Sequence[Any]]) -> None:
    topic, key, epoch = commands[0][:3]
    for command in commands:
        error = ""
        try:
            status = _post(service, *command)
            if status != 200:
                error = f"status {status}"
        except (OSError, http.client.HTTPException) as problem:
            error = repr(problem)
        if error:
            connection.execute(
                "SELECT inturn.fail(%s, %s, %s, %s, %s)", (topic, key, epoch, command[4], error)
            )
            return
        connection.execute("SELECT inturn.advance(%s, %s, %s, %s)", (topic, key, epoch, command[4]))
    connection.execute("SELECT inturn.release(%s, %s, %s)", (topic, key, epoch))


def _main(dsn: str, port: str, seconds: str, *topics: str) -> None:
    service = _Service(int(port), float(seconds))
    # Nothing is prepared: it may go through a pooler.
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as connection:
        print("ready", flush=True)
        while True:
            claimed = connection.execute(_CLAIM, [list(topics)]).fetchall()
            for _, commands in groupby(claimed, itemgetter(0, 1)):
                try:
                    _work(connection, service, list(commands))
                except psycopg.Error as error:
                    if error.sqlstate != _FENCED:
                        raise
            if not claimed:
                connection.execute("SELECT pg_sleep(0.03)")


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        _main(*sys.argv[1:])
