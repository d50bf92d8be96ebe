"""P5: a key with large payloads costs the others nothing, and a process that applies it little memory."""

from __future__ import annotations

import json
import threading

import pytest
from support import bad_outside, deaths, large, rounds, shop
from support.bad_company import innocent_and_charged
from support.database import Database, until

from inturn.applier.inside.visits import CAREFUL_KEYS
from inturn.applier.outside import lanes

#: More than a process takes for claims of large.CLAIM, and less than for all of the payloads.
_MEMORY = large.LENGTH * large.COUNT // 2


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("way", large.WAYS)
def test_p5_healthy_commands_take_no_more_beside_large_payloads(database: Database, way: str) -> None:
    inside = deaths.WAYS[way] in deaths.INSIDE
    with large.at_work(database, way) as pid:
        rounds.watch(database)
        until(lambda: not database.value("SELECT count(*) FROM inturn.ticket"), "the process at work")
        before = large.peak(pid)
        large.append(database)
        keys = rounds.KEYS if inside else rounds.FEW_KEYS
        took = rounds.run(database, end_lease=False, keys=keys)
        until(lambda: not database.value("SELECT count(*) FROM inturn.ticket"), "the large payloads")
        more = large.peak(pid) - before
    assert more < _MEMORY
    assert took.calls <= 2 * took.commands
    assert took.turns <= 2 * took.commands
    assert took.leases <= (CAREFUL_KEYS * len(rounds.KEYS) if inside else 2 * took.commands)
    assert innocent_and_charged(database) == []
    bad_ends = "SELECT outcome, error FROM inturn.turn WHERE outcome NOT IN ('applied', 'idle')"
    assert database.execute(bad_ends) == []


def test_p5_outside_a_key_with_large_payloads_in_hand_keeps_no_other_from_being_claimed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process claims no more while it has as many octets in hand as it may; one key may have them all."""
    monkeypatch.setattr(lanes, "PAYLOADS_IN_HAND", 1000)
    over, seen = threading.Event(), bad_outside.Seen()
    payload = json.dumps({"x": "x" * 2000})
    fault = bad_outside.Fault("", acts=lambda: over.wait(100) and None, payload=payload)
    bad_outside.prepare(database, fault)
    with shop.at_work(database, bad_outside.plain(fault, seen)):
        try:
            # The other topic's keys are not in the claim that has brought the bad one.
            until(lambda: bad_outside.is_healed(database), "the healthy keys")
            assert database.value("SELECT cause FROM inturn.why('bad', 'bad')") == "leased"
        finally:
            over.set()
    seen.assert_once()
    assert innocent_and_charged(database) == []
