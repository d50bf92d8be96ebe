"""Recorder: writes the progress of many keys, whatever waits together in one transaction."""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import TypeAlias

import psycopg

from inturn.applier.calls.lease import LeaseOutcome
from inturn.applier.failure import on_one_line
from inturn.applier.inside.alone import is_transient
from inturn.applier.outside.lanes import place
from inturn.applier.outside.leases import Leases, LeaseStep
from inturn.applier.outside.link import SharedConnection
from inturn.applier.process.failure_log import FAILURES
from inturn.schema.errors import SchemaMismatch

#: The most steps of a transaction: it stays far below a second.
MAX_STEPS = 200
_Waiting: TypeAlias = tuple[LeaseStep, asyncio.Future[LeaseOutcome]]


class Recorder:
    """Takes steps from many coroutines; `run` records them."""

    def __init__(self, leases: Leases, link: SharedConnection) -> None:
        self._leases = leases
        self._link = link
        self._waiting: list[_Waiting] = []
        self._arrived = asyncio.Event()
        # Of those who wait, also for what is being written.
        self._futures: set[asyncio.Future[LeaseOutcome]] = set()
        # What could not be written together, each step by itself: none waits for another.
        self._alone: set[asyncio.Task[None]] = set()
        self._ended = False

    async def record(self, step: LeaseStep) -> LeaseOutcome:
        """Have a step recorded; return what became of its lease once that is committed.

        Raises:
            psycopg.Error: the database was lost for good, or `run` has ended.
            SchemaMismatch: the schema was upgraded meanwhile.
        """
        if self._ended:
            raise _not_any_more()
        future: asyncio.Future[LeaseOutcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((step, future))
        self._futures.add(future)
        self._arrived.set()
        try:
            return await future
        finally:
            self._futures.discard(future)

    async def run(self) -> None:
        """Record what arrives, until cancelled or the database is lost for good; then nobody waits."""
        try:
            while True:
                await self._arrived.wait()
                taken, self._waiting = self._waiting[:MAX_STEPS], self._waiting[MAX_STEPS:]
                if not self._waiting:
                    self._arrived.clear()
                await self._write(taken)
        finally:
            self._ended = True
            for task in self._alone:
                task.cancel()
            for future in self._futures:
                if not future.done():
                    future.set_exception(_not_any_more())

    async def _write(self, taken: list[_Waiting], *, again: bool = False) -> None:
        """Write steps in one transaction. again: for some seconds, where it loses against another one."""
        steps = [step for step, _ in taken]
        record = functools.partial(self._leases.record, steps=steps)
        try:
            outcomes = await self._link.run(record, patient=True, again=again)
        except SchemaMismatch as error:
            for _, future in taken:
                if not future.done():
                    future.set_exception(error)
            return
        except psycopg.Error as error:
            if len(taken) > 1 or (is_transient(error) and not again):
                # One of them is not as the database has it, or loses each time: alone, it is found out.
                for one in taken:
                    task = asyncio.create_task(self._write_alone(one))
                    self._alone.add(task)
                    task.add_done_callback(self._alone.discard)
                return
            FAILURES.log(logging.ERROR, "progress was refused", on_one_line(error), place(steps[0].lease))
            if not taken[0][1].done():
                taken[0][1].set_exception(error)
            return
        for (_, future), outcome in zip(taken, outcomes, strict=True):
            if not future.done():
                future.set_result(outcome)

    async def _write_alone(self, one: _Waiting) -> None:
        try:
            await self._write([one], again=True)
        finally:
            if not one[1].done():
                one[1].set_exception(_not_any_more())


def _not_any_more() -> psycopg.Error:
    return psycopg.OperationalError("nothing is recorded any more: the worker ends")
