"""Outside the database: what goes wrong around a command, seen without a database."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from unittest.mock import AsyncMock, Mock

import pytest
from support.b_server import TOPIC

from inturn.applier.breaker import Breaker
from inturn.applier.command import ClaimedCommand
from inturn.applier.metrics.tallies import Tallies
from inturn.applier.outside.effect import Effect
from inturn.applier.outside.lanes import Lane, Work
from inturn.applier.outside.leases import Lease, LeaseStep
from inturn.applier.outside.turns import OutsideTurns
from inturn.applier.process.totals import Totals
from inturn.applier.stop import LoopBell, Stop


class Hanging(Effect):
    """Does not end; `stops`: whether it does when it is cancelled."""

    def __init__(self, *, stops: bool) -> None:
        self.stops = stops
        self.begun = asyncio.Event()

    def stops_when_cut(self, order: ClaimedCommand) -> bool:
        return self.stops

    async def apply(self, order: ClaimedCommand, lease: Lease) -> None:
        self.begun.set()
        await asyncio.Event().wait()

    async def tidy(self) -> None: ...

    async def close(self) -> None: ...


@pytest.mark.parametrize("stops", [True, False])
def test_a_key_whose_thread_goes_on_is_not_let_go_though_its_topic_has_another_target_by_now(
    stops: bool,
) -> None:
    async def run() -> list[LeaseStep]:
        order = ClaimedCommand(TOPIC, "a", 1, "x", "{}", datetime.now(UTC), 1, 1)
        lease = Lease(TOPIC, "a", 1, 3600.0, time.monotonic() + 3600, 0.0, [order])
        effect, recorder = Hanging(stops=stops), Mock()
        recorder.record = AsyncMock(return_value="released")
        turns = OutsideTurns(
            Mock(), Mock(), recorder, stop=Stop(), bell=LoopBell(), totals=Totals(), tallies=Tallies(),
            give_up=Mock(),
        )  # fmt: skip
        lane, work = Lane(TOPIC, 1, None, effect, Breaker(TOPIC)), Work(lease, probe=False)
        lane.in_flight.add(work)
        work.task = asyncio.create_task(turns.take(lane, work))
        await effect.begun.wait()
        lane.effect = Hanging(stops=not stops)
        work.cut()
        await work.task
        return [call.args[0] for call in recorder.record.await_args_list]

    assert [step.release for step in asyncio.run(run())] == ([True] if stops else [])
