"""A crowd of appliers begins in different places of a topic, and alone one begins at the oldest key."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from support.database import Database, come_first
from support.race import append
from support.roles import APPLIER, OWNER

from inturn.applier import pacing
from inturn.applier.inside.passes import Passes
from inturn.applier.inside.rounds import Rounds
from inturn.applier.inside.visits import Visit

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


def _space_out(database: Database) -> None:
    """Let the tickets have become ready one after the other, a millisecond each."""
    database.execute("""
        UPDATE inturn.ticket t SET ready_at = now() - (1000 - n.place) * interval '1 ms'
        FROM (SELECT key, row_number() OVER (ORDER BY key) AS place FROM inturn.ticket) n
        WHERE n.key = t.key""")


def test_p5_in_a_crowd_appliers_begin_in_sixteen_times_what_it_has_in_hand(witness: Database) -> None:
    for number in range(200):
        append(witness, f"k{number:03}")
    _space_out(witness)
    crowd(witness, 2)
    begun = places(witness, 2)
    # 200 draws out of 96 places: that all are among the first 24 has a chance of 10^-120.
    assert len(begun) >= 10
    assert 24 < max(begun) <= 96


def test_p5_in_a_crowd_appliers_of_slow_handlers_begin_closer_to_the_oldest_key(witness: Database) -> None:
    """Their batches have one key: else the oldest one would wait until a crowd is through with hundreds."""
    for number in range(200):
        append(witness, f"k{number:03}")
    _space_out(witness)
    crowd(witness, 2)
    assert max(places(witness, 1)) <= 48


def test_p5_the_crowd_of_another_database_is_none_of_this_one(witness: Database, template: str) -> None:
    """In databases that were made from one template, tables have the same numbers."""
    other = Database(witness.server, f"{witness.name}_other", template=template)
    try:
        other.execute("SELECT inturn.create_topic('orders')")
        for database in (witness, other):
            for number in range(60):
                append(database, f"k{number:02}")
        crowd(other, 3)
        number_of = "SELECT 'inturn.ticket'::regclass::oid"
        assert witness.value(number_of) == other.value(number_of)
        assert places(witness, 2) == {0}
    finally:
        other.drop()


def test_p5_in_a_crowd_a_queue_that_is_shorter_is_begun_all_over(witness: Database) -> None:
    for number in range(20):
        append(witness, f"k{number:02}")
    _space_out(witness)
    crowd(witness, 2)
    assert len(places(witness, 50)) >= 10


def test_p5_in_a_crowd_any_number_of_keys_may_be_asked_for(witness: Database) -> None:
    """It is multiplied by how many are at work, so that only a crowd would refuse it."""
    for number in range(4):
        append(witness, f"k{number}")
    crowd(witness, 3)
    assert places(witness, 2147483647) <= {0, 1, 2, 3}
    assert places(witness, -1) == {0}


def test_p5_in_a_crowd_a_key_that_has_waited_for_ages_puts_nobody_beyond_the_others(
    witness: Database,
) -> None:
    """By the times of the first ones, the next would be ready in a million years."""
    for number in range(5):
        append(witness, f"k{number}")
    _space_out(witness)
    witness.execute("UPDATE inturn.ticket SET ready_at = '4000-01-01 BC' WHERE key = 'k0'")
    crowd(witness, 2)
    assert places(witness, 1000) <= set(range(5))


def test_p5_in_a_crowd_nobody_counts_the_tickets_to_find_where_it_begins(witness: Database) -> None:
    """With thirty appliers that was hundreds of entries a visit, for as many keys applied."""
    witness.execute(
        "INSERT INTO inturn.ticket (topic, key, epoch, applied_seq, ready_at)"
        " SELECT 'orders', 'k' || n, 0, 0, now() - (5000 - n) * interval '1 ms'"
        " FROM generate_series(1, 5000) n"
    )
    witness.execute("VACUUM ANALYZE inturn.ticket")
    crowd(witness, 8)
    counter = "SELECT pg_stat_get_xact_tuples_returned('inturn.ticket_ready'::regclass)"
    with witness.connect(user=OWNER, autocommit=False) as connection:
        for _ in range(100):
            connection.execute("SELECT inturn._spread_out('orders', '-infinity', 50)")
        ((entries,),) = connection.execute(counter)
    assert entries <= 100 * (50 + 6)


def test_p5_in_a_crowd_a_careful_call_takes_the_oldest_keys_alone(witness: Database) -> None:
    """The key that one before it died of is among them."""
    for number in range(60):
        append(witness, f"k{number:02}")
    _space_out(witness)
    crowd(witness, 2)
    with witness.connect(user=APPLIER) as session:
        session.execute("SET inturn.careful_keys = 3")
        session.execute("CALL inturn.apply()")
    first = "SELECT array_agg(key ORDER BY id) FROM (SELECT * FROM app.witness ORDER BY id LIMIT 3) w"
    assert witness.value(first) == ["k02", "k03", "k04"]  # the crowd has the others


def test_p5_in_a_crowd_a_call_ends_only_where_nothing_is_ready(witness: Database) -> None:
    """From where it begins on, others may have everything in hand; there is more before."""
    for number in range(60):
        append(witness, f"k{number:02}")
    _space_out(witness)
    crowd(witness, 2)
    with witness.connect(user=OWNER, autocommit=False) as others:
        others.execute("SELECT FROM inturn.ticket WHERE key >= 'k03' FOR UPDATE")
        for applied in range(1, 11):
            witness.execute("CALL inturn.apply()")
            assert witness.value("SELECT count(*) FROM app.witness") == applied
            append(witness, "k02")
            come_first(witness, "k02")


def test_p5_in_a_crowd_a_call_says_by_how_long_its_handlers_take_where_it_may_begin(
    witness: Database,
) -> None:
    witness.execute("""
        CREATE TABLE app.begun (width integer);
        CREATE OR REPLACE FUNCTION inturn._spread_out(topic text, since timestamptz, width integer)
        RETURNS timestamptz LANGUAGE sql SECURITY DEFINER AS $$
            INSERT INTO app.begun VALUES (width); SELECT since $$;
    """)
    for per_key, width in (("NULL", 50), ("0.0001", 50), ("0.002", 5), ("1.5", 1)):
        witness.execute("TRUNCATE app.begun")
        with witness.connect(user=APPLIER) as session:
            session.execute(
                "CALL inturn._visit_topic('orders', '-infinity', 'infinity', 50, 'me',"
                f" inturn._keep_settings(NULL), 0, 0, false, {per_key}, 0, '{{}}')"
            )
        assert witness.execute("SELECT width FROM app.begun") == [(width,)], per_key


def test_p5_a_call_knows_what_a_key_takes_as_a_worker_does(witness: Database) -> None:
    for before, now, took, most in itertools.product(
        (None, 0.0001, 0.002, 0.5), (0.0, 0.000001, 0.0021, 0.03), (0.0, 0.099, 0.1, 5.0), (1, 50)
    ):
        known = pacing.seconds_per_key(pacing.NEVER if before is None else before, now, took, most)
        asked = "SELECT inturn._seconds_per_key(%s, %s, %s * interval '1 s', %s)"
        found = witness.value(asked, [before, now, took, most])
        assert found == pytest.approx(known), (before, now, took, most)


def test_p5_workers_of_the_daemon_begin_in_different_places_too(witness: Database) -> None:
    for number in range(60):
        append(witness, f"k{number:02}")
    _space_out(witness)
    crowd(witness, 2)
    passes, connection = Passes("inturn"), witness.connect(user=APPLIER)
    passes.serve(connection, ["orders"])
    assert passes.begin(connection) == ["orders"]
    assert len({passes.hand_among_many(connection, "orders", 2) for _ in range(200)}) >= 10


class _Passes(SimpleNamespace):
    """Of a topic that always has ready keys."""

    due, looked_at = None, ""

    def begin(self, _: Any) -> list[str]:
        return ["orders"]

    def hand(self, _: str) -> str:
        return "the front"

    def hand_among_many(self, *_: Any) -> str:
        return "elsewhere"


def test_p5_a_worker_begins_elsewhere_only_where_its_last_visit_left_keys() -> None:
    """To ask where takes a round trip; and of few keys the oldest comes first.

    Where nothing is left from there on, there may be something before: a drain does not end. And the key that
    an applier died of is looked for among the oldest.
    """
    more, nothing_there = Visit(found=True, emptied=False), Visit(found=False, emptied=True)
    ends = [more, nothing_there, more, more, Visit(found=True, emptied=True)]
    careful = iter([False, False, True])
    hands: list[str] = []

    def visit(_connection: Any, _target: Any, hand: str) -> Visit:
        hands.append(hand)
        return ends[len(hands) - 1]

    nothing = SimpleNamespace(end_never=lambda: None, end_within=lambda _: None)
    visits = SimpleNamespace(
        visit=visit, left_out=set(), width=lambda _: 50, is_careful=lambda _: next(careful, False)
    )
    stub: Any = SimpleNamespace()
    rounds = Rounds(
        stub,
        _Passes(),  # type: ignore[arg-type]
        visits,  # type: ignore[arg-type]
        nothing,  # type: ignore[arg-type]
        drain=False,
        stop=stub,
        bell=stub,
        ended=lambda: False,
    )
    rounds._targets = {"orders": stub}
    assert [rounds._apply_ready(stub) for _ in ends] == [True] * 5
    assert hands == ["the front", "elsewhere", "the front", "elsewhere", "the front"]
