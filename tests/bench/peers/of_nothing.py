"""No queue: the UPDATEs alone, each key's by one worker. What a round trip a command allows at most."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import psycopg

from bench.peers.peer import Job, PythonPeer, Tally, serve
from bench.peers.work import EFFECT

#: How many commands share a transaction.
_TOGETHER = 100

PEER = PythonPeer("no queue", __name__, ["psycopg"])


def load(job: Job) -> None:
    """Send nothing: each worker knows what it has to do."""


def apply(job: Job) -> None:
    tally = Tally(job)
    threads = [threading.Thread(target=_work, args=(job, tally, number)) for number in range(job.workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _work(job: Job, tally: Tally, worker: int) -> None:
    commands = _commands(job, worker)
    with psycopg.connect(job.dsn, autocommit=True) as connection:
        while not tally.is_over and (together := list(itertools.islice(commands, _TOGETHER))):
            with connection.transaction():
                for key, number in together:
                    connection.execute(EFFECT, {"key": key, "number": number})
            tally.count(len(together))


def _commands(job: Job, worker: int) -> Iterator[tuple[str, int]]:
    """Give the worker's share of the keys with their numbers, some keys at a time as a claim takes them."""
    keys = iter(range(worker, job.keys, job.workers))
    while some := list(itertools.islice(keys, _TOGETHER)):
        for number, key in itertools.product(range(1, job.depth + 1), some):
            yield f"key-{key}", number


if __name__ == "__main__":
    serve(load, apply)
