"""pgmq: a bare loop in each worker, with a message group a key."""

from __future__ import annotations

import threading
import time
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from bench.peers.peer import Job, Pause, PythonPeer, Tally, serve
from bench.peers.work import EFFECT

_QUEUE = "account"

#: By how many keys a worker reads at a time, each with its oldest message, and commits at once. A read goes
#: over the whole queue, whatever it returns: more is faster, and more is done again when a handler fails.
PEERS = [
    PythonPeer(f"pgmq, {keys:,} keys a read", __name__, ["pgmq", "psycopg"], str(keys))
    for keys in (100, 1000)
]


def load(job: Job, _: str) -> None:
    from pgmq.install import get_embedded_install_sql

    with psycopg.connect(job.dsn, autocommit=True) as connection:
        connection.execute(get_embedded_install_sql())
        connection.execute("SELECT pgmq.create(%s)", [_QUEUE])
        connection.execute("SELECT pgmq.create_fifo_index(%s)", [_QUEUE])
        for chunk in job.workload.chunks():
            connection.execute(
                "SELECT pgmq.send_batch(%s, %s::jsonb[], %s::jsonb[])",
                [
                    _QUEUE,
                    [Jsonb({"key": key, "number": number}) for key, number in chunk],
                    [Jsonb({"x-pgmq-group": key}) for key, _ in chunk],
                ],
            )


def apply(job: Job, keys: str) -> None:
    tally = Tally(job)
    threads = [threading.Thread(target=_work, args=(job, tally, int(keys))) for _ in range(job.workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _work(job: Job, tally: Tally, keys: int) -> None:
    pause = Pause()
    with psycopg.connect(job.dsn, autocommit=True) as connection:
        while not tally.is_over:
            with connection.transaction():
                found = _turn(connection, keys)
            tally.count(found)
            time.sleep(pause.after(found))


def _turn(connection: psycopg.Connection[tuple[Any, ...]], keys: int) -> int:
    # How long a message stays hidden does not matter: it is deleted before the transaction ends.
    messages = connection.execute(
        "SELECT msg_id, message FROM pgmq.read_grouped_head(%s, 60, %s)", [_QUEUE, keys]
    ).fetchall()
    for _, message in messages:
        connection.execute(EFFECT, message)
    if messages:
        connection.execute("SELECT pgmq.delete(%s, %s::bigint[])", [_QUEUE, [row[0] for row in messages]])
    return len(messages)


if __name__ == "__main__":
    serve(load, apply)
