"""Every kind of violation, planted by hand, is found by `verify`, and called by its name."""

from __future__ import annotations

from support.database import Database
from support.plants import PLANTS
from support.roles import OWNER
from support.verifying import NO_CONSTRAINTS, OF_A, undone, verified


def test_a_planted_violation_is_found_and_called_by_its_name(history: Database) -> None:
    session = history.session(user=OWNER)
    session.execute(NO_CONSTRAINTS)
    for planted, (plant, expected) in PLANTS.items():
        with undone(session):
            session.execute(plant)
            found = verified(session)
        assert {(violation, seq) for violation, _, _, seq, *_ in found} == expected, planted
        key = "" if planted == "a topic lost" else "b" if "'b'" in plant else "a"
        assert {each for _, _, each, *_ in found} == {key}, planted
        for _, topic, _, _, says, rows in found:
            assert topic == "orders", planted
            assert says, planted
            assert rows or planted == "a topic lost", planted
            assert all("payload" not in row for row in rows), planted


def test_the_rows_of_a_violation_are_those_that_show_it(history: Database) -> None:
    history.execute(f"UPDATE inturn.turn SET from_seq = 3 WHERE {OF_A} AND epoch = 2")
    ((violation, topic, key, seq, says, rows),) = verified(history)
    assert (violation, topic, key, seq) == ("passed-twice", "orders", "a", 3)
    assert says == "3 was applied or skipped twice, the second time in epoch 2"
    turns = [(row["epoch"], row["from_seq"], row["to_seq"]) for row in rows if row["table"] == "turn"]
    assert turns == [(1, 1, 3), (2, 3, 3)]
    assert {row["table"] for row in rows} == {"turn"}
