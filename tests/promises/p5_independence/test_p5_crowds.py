"""A crowd of appliers begins in different places of a topic, and alone one begins at the oldest key."""

from __future__ import annotations

from support.database import Database
from support.race import append

_BEGINS = """
    SELECT (SELECT count(*) FROM inturn.ticket t WHERE t.topic = 'orders' AND t.ready_at < b.at) AS place
    FROM (SELECT inturn._spread_out('orders', '-infinity', %s) AS at FROM generate_series(1, 200)) b
"""


def places(database: Database, max_keys: int) -> set[int]:
    """Return how many tickets lie before each of 200 beginnings."""
    return {place for (place,) in database.execute(_BEGINS, [max_keys])}


def crowd(database: Database, size: int) -> None:
    """Let so many sessions have a claim in hand."""
    for _ in range(size):
        session = database.session()
        assert session.execute("SELECT key FROM inturn.claim('orders')")


def test_p5_an_applier_alone_or_beside_one_other_begins_at_the_oldest_key(witness: Database) -> None:
    for number in range(6):
        append(witness, f"k{number}")
    assert places(witness, 1) == {0}
    crowd(witness, 1)
    assert places(witness, 1) == {0}


def test_p5_in_a_crowd_appliers_begin_within_what_it_has_in_hand(witness: Database) -> None:
    for number in range(20):
        append(witness, f"k{number:02}")
    crowd(witness, 3)
    # 200 draws out of four: that one of them is never drawn has a chance of 10^-24.
    assert places(witness, 2) == {0, 2, 4, 6}


def test_p5_in_a_crowd_a_short_queue_is_begun_at_its_oldest_key(witness: Database) -> None:
    for number in range(4):
        append(witness, f"k{number}")
    crowd(witness, 3)
    assert places(witness, 50) == {0}


def test_p5_in_a_crowd_any_number_of_keys_may_be_asked_for(witness: Database) -> None:
    """It is multiplied by how many are at work, so that only a crowd would refuse it."""
    for number in range(4):
        append(witness, f"k{number}")
    crowd(witness, 3)
    assert places(witness, 2147483647) == {0}
    assert places(witness, -1) == {0}
