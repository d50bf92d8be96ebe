"""procrastinate: a job a command, with its key as the job's lock."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from bench.peers.peer import Job, PythonPeer, Tally, serve
from bench.peers.work import EFFECT

PEER = PythonPeer("procrastinate", __name__, ["procrastinate", "psycopg"])


def load(job: Job) -> None:
    from procrastinate import App, SyncPsycopgConnector
    from procrastinate.jobs import Job as Deferred

    app = App(connector=SyncPsycopgConnector(conninfo=job.dsn))
    with app.open():
        app.schema_manager.apply_schema()
        for chunk in job.workload.chunks():
            app.job_manager.batch_defer_jobs(
                [
                    Deferred(
                        queue="account",
                        lock=key,
                        queueing_lock=None,
                        task_name="apply",
                        task_kwargs={"key": key, "number": number},
                    )
                    for key, number in chunk
                ]
            )


def apply(job: Job) -> None:
    asyncio.run(_apply(job))


async def _apply(job: Job) -> None:
    from procrastinate import App, PsycopgConnector

    logging.getLogger("procrastinate").setLevel(logging.ERROR)
    # For each worker a connection for its handler, one for its fetches, and its listener's.
    size = 3 * job.workers
    app = App(connector=PsycopgConnector(conninfo=job.dsn, min_size=size, max_size=size))
    tally = Tally(job)

    async def handle(key: str, number: int) -> None:
        async with pool.connection() as connection:
            await connection.execute(EFFECT, {"key": key, "number": number})
        tally.count(1)

    app.task(name="apply", queue="account")(handle)
    async with app.open_async():
        pool: Any = app.connector.pool
        workers = [asyncio.create_task(_worker(app)) for _ in range(job.workers)]
        while not tally.is_over and not any(worker.done() for worker in workers):
            await asyncio.sleep(0.02)
        for worker in workers:
            worker.cancel()
        for worker in workers:
            with contextlib.suppress(asyncio.CancelledError):
                await worker


async def _worker(app: Any) -> None:
    # So many workers with a job each: that was faster here than one worker with so many jobs, and async
    # handlers were as fast as sync ones.
    await app.run_worker_async(
        concurrency=1, fetch_job_polling_interval=0.1, delete_jobs="always", install_signal_handlers=False
    )


if __name__ == "__main__":
    serve(load, apply)
