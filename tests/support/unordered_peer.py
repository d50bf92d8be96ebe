"""A peer of the bench that applies every key's commands backwards."""

from __future__ import annotations

import psycopg
from bench.peers.peer import Job, PythonPeer, serve
from bench.peers.work import EFFECT

PEER = PythonPeer("backwards", __name__, ["psycopg"])


def load(job: Job) -> None:
    with psycopg.connect(job.dsn) as connection:
        connection.execute("CREATE TABLE app.waiting (key text, number bigint)")
        for chunk in job.workload.chunks():
            connection.cursor().executemany("INSERT INTO app.waiting VALUES (%s, %s)", chunk)


def apply(job: Job) -> None:
    with psycopg.connect(job.dsn, autocommit=True) as connection:
        waiting = connection.execute("SELECT key, number FROM app.waiting ORDER BY number DESC").fetchall()
        for key, number in waiting:
            connection.execute(EFFECT, {"key": key, "number": number})


if __name__ == "__main__":
    serve(load, apply)
