"""P5: beside a key that ends its process over and over, a healthy command takes two turns at most.

One, and one more that was lost with the process: a suspect is taken alone, so it is not lost again.
"""

from __future__ import annotations

import threading

import pytest
from support import bad_outside, deaths, rounds
from support.bad_company import innocent_and_charged
from support.database import Database

from inturn.applier.inside.visits import CAREFUL_KEYS


@pytest.mark.slow
@pytest.mark.parametrize("way", deaths.WAYS)
def test_p5_healthy_commands_take_no_more_beside_deaths(database: Database, way: str) -> None:
    """A supervisor starts the process again at once, in each round."""
    starts, is_inside = 0, deaths.WAYS[way] in deaths.INSIDE
    with deaths.company(database, way) as run:
        rounds.watch(database)

        def supervise(over: threading.Event) -> None:
            nonlocal starts
            while not over.is_set():
                starts += 1
                run(over.is_set, "--workers", str(rounds.WORKERS))  # a client of ours has one
                if deaths.WAYS[way] != "call":  # whose server goes on
                    rounds.wait_gone(database)
                    rounds.end_leases(database)

        with rounds.beside(supervise, 1):
            keys = rounds.KEYS if is_inside else rounds.FEW_KEYS
            took = rounds.run(database, end_lease=False, keys=keys)
    assert starts > rounds.ROUNDS
    assert took.calls <= 2 * took.commands
    assert took.turns <= 2 * took.commands
    assert took.leases <= 2 * took.commands
    if is_inside:
        # A start takes the first keys of each topic alone, and no others.
        assert took.leases <= CAREFUL_KEYS * len(rounds.KEYS) * starts
    assert innocent_and_charged(database) == []


def test_p5_suspects_do_not_all_come_back_at_the_same_moment(database: Database) -> None:
    """A process takes one of them at a time: it would take one in each 100 ms, of all that it died with."""
    bad_outside.prepare(database, bad_outside.Fault(""))
    claim = "SELECT key FROM inturn.claim('{bad,other}', 1000, '1 minute', %s)"
    keys = len(database.execute(claim, ["elsewhere:1:1"]))
    rounds.end_leases(database)
    assert len(database.execute(claim, ["here:1:1"])) == 1
    put_off = database.execute("""
        SELECT t.ready_at = date_bin('10 ms', t.ready_at, 'epoch'),
               t.ready_at <= clock_timestamp() + interval '100 ms', t.ready_at
        FROM inturn.ticket t JOIN inturn.key_mark m USING (topic, key, epoch) WHERE m.claimed_by IS NULL
    """)
    assert len(put_off) == keys - 1
    # In few moments, since the process looks for them at each.
    assert all(on_time and soon for on_time, soon, _ in put_off)
    assert len({ready_at for _, _, ready_at in put_off}) >= 4
