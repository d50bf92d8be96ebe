"""The comparison: a database a load, and for each measurement a copy of it and a process of the peer's."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import psycopg
from support import roles
from support.server import Server

from bench.peers.peer import Job, Peer, Unavailable
from bench.peers.processes import run
from bench.peers.work import RESULT, TABLE, Workload

#: How long a process may take to start and to end, beside its time of work.
_GRACE_SECONDS = 30.0
_LOAD_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Measured:
    """What a peer did with a load.

    Attributes:
        done: how many commands took effect; one that did twice counts twice.
        out_of_order: how many of these were not the successor of their key's last one.
        rate: commands a second, from the start of the workers to the last effect; None where there is none.
        reason: what went wrong, or empty.
    """

    workload: Workload
    workers: int
    peer: str
    done: int = 0
    out_of_order: int = 0
    rate: float | None = None
    reason: str = ""


class Comparison:
    """Measures peers side by side on one server, until all is measured or time is up."""

    def __init__(self, server: Server, peers: Sequence[Peer], *, seconds: float, minutes: float) -> None:
        """Make a comparison; nothing is measured yet.

        Args:
            seconds: how long a measurement goes on if its load is not applied before.
            minutes: how long the whole may take; what was not begun by then is not measured.
        """
        self._server = server
        self._peers = peers
        self._seconds = seconds
        self._end_at = time.monotonic() + minutes * 60
        self._numbers = itertools.count(1)
        self.versions: dict[str, str] = {}
        self.rows: list[Measured] = []

    def run(self, workloads: Sequence[Workload], workers: Sequence[int]) -> None:
        """Measure every load with every number of workers, the peers one right after another."""
        refusals = {peer: self._refusal(peer) for peer in self._peers}
        for workload in workloads:
            loaded = {peer: refusals[peer] or self._loaded(peer, workload) for peer in self._peers}
            for count in workers:
                for peer, job in loaded.items():
                    self._add(self._measured(peer, workload, count, job))
            for job in loaded.values():
                if isinstance(job, Job):
                    self._drop(job.database)

    def _refusal(self, peer: Peer) -> str:
        try:
            self.versions.update(peer.versions())
        except Unavailable as error:
            return str(error)
        return ""

    def _loaded(self, peer: Peer, workload: Workload) -> Job | str:
        """Return a job whose database all measurements of a load copy, or why there is none."""
        if time.monotonic() > self._end_at:
            return "out of time"
        job = Job(
            host=str(self._server.directory),
            port=self._server.port,
            user=roles.OWNER,
            database=self._create(),
            keys=workload.keys,
            depth=workload.depth,
        )
        with psycopg.connect(job.dsn) as connection:
            connection.execute(TABLE)
            connection.execute(
                "INSERT INTO app.account (key) SELECT 'key-' || i FROM generate_series(0, %s) i",
                [workload.keys - 1],
            )
        try:
            run(peer.command("load", job), _LOAD_SECONDS)
        except Unavailable as error:
            self._drop(job.database)
            return str(error)
        with self._server.connect(job.database) as connection:
            connection.execute("VACUUM (ANALYZE)")
        return job

    def _measured(self, peer: Peer, workload: Workload, workers: int, loaded: Job | str) -> Measured:
        row = Measured(workload, workers, peer.name)
        if isinstance(loaded, str):
            return replace(row, reason=loaded)
        if time.monotonic() > self._end_at:
            return replace(row, reason="out of time")
        with self._copy(loaded.database) as database:
            job = replace(loaded, database=database, workers=workers, seconds=self._seconds)
            try:
                run(peer.command("apply", job), self._seconds + _GRACE_SECONDS)
            except Unavailable as error:
                row = replace(row, reason=str(error))
            with self._server.connect(database) as connection:
                found = connection.execute(RESULT).fetchone()
        assert found is not None
        done, out_of_order, seconds = int(str(found[0])), int(str(found[1])), float(str(found[2] or 0))
        return replace(row, done=done, out_of_order=out_of_order, rate=done / seconds if seconds else None)

    def _add(self, row: Measured) -> None:
        self.rows.append(row)
        said = [f"{row.rate:,.0f} /s" if row.rate else "", row.reason, f"{row.done:,} applied"]
        if row.out_of_order:
            said.append(f"{row.out_of_order:,} out of order")
        what = f"{row.workload.name}, {row.workers} workers, {row.peer}"
        print(f"  {what}: {', '.join(filter(None, said))}", file=sys.stderr)

    def _create(self, template: str | None = None) -> str:
        name = f"peers_{next(self._numbers)}"
        with self._server.connect() as connection:
            of = f" TEMPLATE {template}" if template else ""
            connection.execute(f"CREATE DATABASE {name} OWNER {roles.OWNER}{of}")
        return name

    def _drop(self, name: str) -> None:
        with self._server.connect() as connection:
            # By force: a process that was killed leaves its connections behind.
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    @contextmanager
    def _copy(self, template: str) -> Iterator[str]:
        name = self._create(template)
        with self._server.connect() as connection:
            # What the load wrote is not written in the measured time.
            connection.execute("CHECKPOINT")
        try:
            yield name
        finally:
            self._drop(name)
