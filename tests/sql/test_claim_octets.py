"""A claim is bounded in octets as well as in commands, in every way of applying."""

from __future__ import annotations

import threading
from itertools import groupby
from operator import itemgetter
from typing import Any

import psycopg
import pytest
from support.b_server import state
from support.database import Database, until
from support.process import inturn_apply
from support.race import replace_in
from support.roles import APPLIER
from support.shop import at_work

from inturn.applier import Applier, Command
from inturn.applier.outside import lanes

_MOST = 16 * 1024 * 1024
_CLAIMS = {
    "inside": "SELECT key, epoch, seq, payload::text FROM inturn.claim_commands('inside', max_keys => %s)",
    "outside": "SELECT key, epoch, seq, payload::text FROM inturn.claim('{outside}', %s, NULL, 'me')",
}


@pytest.fixture(params=_CLAIMS)
def topic(request: pytest.FixtureRequest, database: Database) -> str:
    """A topic that is applied in this way."""
    name: str = request.param
    database.execute("SELECT inturn.create_topic(%s)", [name])
    return name


def _put(database: Database, topic: str, key: str, *sizes: int) -> None:
    """Append a command with a payload of each of these lengths, in octets."""
    for size in sizes:
        payload = f'"{"x" * (size - 2)}"'
        database.execute("SELECT inturn.append(%s, %s, 'x', %s::jsonb)", [topic, key, payload])


def _claim(
    connection: psycopg.Connection[Any], topic: str, keys: int = 50
) -> dict[str, list[tuple[int, int]]]:
    """Claim and commit; return each key's commands: its number and the length of its payload."""
    rows = connection.execute(_CLAIMS[topic], [keys]).fetchall()
    return {
        key: [(seq, len(payload)) for _, _, seq, payload in commands]
        for key, commands in groupby(rows, itemgetter(0))
    }


def _tickets(database: Database, key: str) -> list[tuple[Any, ...]]:
    return database.execute(
        "SELECT epoch, applied_seq, ready_at, empty_turns FROM inturn.ticket WHERE key = %s", [key]
    )


def test_forty_deep_keys_with_large_payloads_come_in_claims_of_16_mebibytes(
    database: Database, topic: str
) -> None:
    # The first ones fill a claim; together the others are more than another.
    database.execute(
        "SELECT count(inturn.append(%s, 'k' || k, 'x', jsonb_build_object('x', repeat('x', 200000))))"
        " FROM generate_series(1, 40) k, generate_series(1, CASE WHEN k <= 2 THEN 50 ELSE 3 END) c",
        [topic],
    )
    untouched = _tickets(database, "k40")
    claimed = _claim(database.connect(user=APPLIER), topic)
    sizes = [size for commands in claimed.values() for _, size in commands]
    assert _MOST - max(sizes) < sum(sizes) <= _MOST
    assert list(claimed) == ["k1", "k2"]
    assert [seq for seq, _ in claimed["k1"]] == list(range(1, 51)), "whole"
    assert [seq for seq, _ in claimed["k2"]] == list(range(1, len(claimed["k2"]) + 1)), "its first commands"
    assert _tickets(database, "k40") == untouched


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        # The first command comes however long it is, and then nothing.
        ({"a": [500, 10], "b": [10]}, {"a": [500]}),
        ({"a": [100], "b": [10]}, {"a": [100]}),
        # Up to the last octet.
        ({"a": [50, 50, 10]}, {"a": [50, 50]}),
        ({"a": [50], "b": [50], "c": [10]}, {"a": [50], "b": [50]}),
        # A key comes with fewer commands, or not at all; none comes out of turn behind one that does not fit.
        ({"a": [40], "b": [40, 21, 10], "c": [10]}, {"a": [40], "b": [40]}),
        ({"a": [40], "b": [61], "c": [10]}, {"a": [40]}),
        ({"a": [10], "b": [10], "c": [10]}, {"a": [10], "b": [10], "c": [10]}),
    ],
)
def test_what_comes_when_not_all_fits(
    database: Database, topic: str, sizes: dict[str, list[int]], expected: dict[str, list[int]]
) -> None:
    for key, lengths in sizes.items():
        _put(database, topic, key, *lengths)
    before = {key: _tickets(database, key) for key in sizes}
    applier = database.connect(user=APPLIER)
    applier.execute("SET inturn.max_claim_octets = 100")
    claimed = _claim(applier, topic)
    assert {key: [size for _, size in commands] for key, commands in claimed.items()} == expected
    for key in sizes.keys() - expected.keys():
        assert _tickets(database, key) == before[key], "ready as it was"
        assert state(database, key)[:3] == ("ready", 0, 0)
    # The next claim begins where this one ended.
    if topic == "outside" and sizes.keys() - expected.keys():
        assert next(iter(_claim(applier, topic))) == min(sizes.keys() - expected.keys())


def test_what_merging_made_too_long_for_a_claim_is_not_left_leased(database: Database) -> None:
    """A lease of which nothing is returned would run out, and cost the key a loss."""
    database.execute("""
        CREATE FUNCTION public.both(inturn.command, inturn.command) RETURNS jsonb LANGUAGE sql AS
            $$SELECT to_jsonb(repeat('x', 88))$$;
        SELECT inturn.create_topic('outside'), inturn.merge_rule('outside', 'x', 'x', 'sql:public.both');
    """)
    _put(database, "outside", "a", 50)
    _put(database, "outside", "b", 10, 10)
    applier = database.connect(user=APPLIER)
    applier.execute("SET inturn.max_claim_octets = 100")
    assert _claim(applier, "outside") == {"a": [(1, 50)]}
    assert state(database, "b")[:3] == ("ready", 0, 0)
    # Somebody has had the first one in hand: it is not merged any more.
    assert _claim(applier, "outside") == {"b": [(1, 10), (2, 10)]}


def test_a_claim_goes_on_after_the_hand_to_the_keys_that_did_not_fit(database: Database, topic: str) -> None:
    """Through a worker: in turn, each once, and no key has an empty turn or an attempt."""
    done: list[tuple[str, int]] = []
    handlers = Applier()

    def note(command: Command) -> None:
        done.append((command.key, command.seq))

    if topic == "inside":
        handlers.handler(topic)(lambda _, command: note(command))
    else:
        handlers.handler(topic, outside=True)(note)
    for number in range(12):
        _put(database, topic, f"k{number}", 60, 60, 10, 150)
    dsn = f"{database.applier_dsn} options='-c inturn.max_claim_octets=100'"
    with at_work(database, handlers, dsn=dsn):
        until(lambda: len(done) >= 48, "all commands")
    assert len(done) == 48
    for number in range(12):
        assert [seq for key, seq in done if key == f"k{number}"] == [1, 2, 3, 4]
    assert database.value("SELECT count(*) FROM inturn.turn WHERE outcome NOT IN ('applied', 'idle')") == 0


def test_a_key_with_nothing_to_apply_still_ends_its_turn(database: Database) -> None:
    """A caller's transaction is open on it: its ticket is there, its command is not."""
    database.execute("SELECT inturn.create_topic('inside')")
    _put(database, "inside", "a", 100)
    database.execute("INSERT INTO inturn.key_sequence (topic, key) VALUES ('inside', 'b')")
    database.execute(
        "INSERT INTO inturn.ticket (topic, key, epoch, applied_seq, ready_at)"
        " VALUES ('inside', 'b', 0, 0, now())"
    )
    with database.connect(user=APPLIER) as applier:
        applier.execute("SET inturn.max_claim_octets = 100")
        rows = applier.execute(
            "SELECT key, seq, payload FROM inturn.claim_commands('inside', max_keys => 9)"
        ).fetchall()
    assert [(key, seq) for key, seq, _ in rows] == [("a", 1), ("b", None)]
    assert rows[1][2] is None


def test_a_process_of_little_memory_applies_forty_deep_keys(database: Database) -> None:
    database.execute("SELECT inturn.create_topic('inside'), inturn.create_topic('outside')")
    database.execute(
        "SELECT count(inturn.append(%s, 'k' || k, 'x', jsonb_build_object('x', repeat('x', 200000))))"
        " FROM generate_series(1, 50) c, generate_series(1, 40) k",
        ["outside"],
    )
    with inturn_apply(
        database.dsn,
        "--drain",
        "--topic",
        "outside",
        app="support.small:applier",
        SMALL_BYTES=str(900_000 * 1024),
    ) as process:
        assert process.exit_code(100) == 0, process.err
        assert "applied 2,000 commands" in process.out


def test_outside_work_claims_no_more_than_it_can_hold(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "PAYLOADS_IN_HAND", 300)
    monkeypatch.setattr(lanes, "SHORT_IN_HAND", 300)  # of which a claim may have 75, then 62, 50, and 37
    database.execute("SELECT inturn.create_topic('outside', batch_commands => 2)")
    handlers = Applier()
    most = 0
    held = "SELECT count(*) FROM inturn.key_mark WHERE claimed_by IS NOT NULL"

    @handlers.handler("outside", outside=True)
    def look(command: Command) -> None:
        nonlocal most
        most = max(most, database.value(held))

    for number in range(20):
        _put(database, "outside", f"k{number}", 50, 50)
    with at_work(
        database, handlers, dsn=f"{database.applier_dsn} options='-c inturn.max_claim_octets=100'"
    ) as fleet:
        until(lambda: fleet.totals.commands == 40, "all commands")
    assert 1 < most <= 4 + 3


def test_outside_work_goes_on_with_short_payloads_while_it_can_hold_no_long_ones(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two keys that are in hand for long are no reason for the others to wait."""
    monkeypatch.setattr(lanes, "PAYLOADS_IN_HAND", 1000)
    database.execute("SELECT inturn.create_topic('outside')")
    handlers, over = Applier(), threading.Event()

    @handlers.handler("outside", outside=True)
    def work(command: Command) -> None:
        if command.key.startswith("long"):
            assert over.wait(100)

    monkeypatch.setattr(lanes, "SHORT_IN_HAND", 4000)
    for key in ("long 1", "long 2"):
        _put(database, "outside", key, 1200)
    leased = "SELECT array_agg(key ORDER BY key) FROM inturn.key_mark WHERE claimed_by IS NOT NULL"
    with at_work(database, handlers) as fleet:
        try:
            until(lambda: database.value(leased) == ["long 1", "long 2"], "those in hand")
            _put(database, "outside", "long 3", 1200)
            for number in range(30):
                _put(database, "outside", f"short {number}", 50, 50)
            until(lambda: fleet.totals.commands == 60, "the short ones")
            assert database.value(leased) == ["long 1", "long 2"], "no more than it can hold"
        finally:
            over.set()
        until(lambda: fleet.totals.commands == 63, "all of them")


def test_short_payloads_are_claimed_behind_long_ones_and_have_no_more_octets_than_asked_for(
    database: Database,
) -> None:
    database.execute("SELECT inturn.create_topic('outside')")
    replace_in(database, "_claim_small", ("interval '100 ms'", "interval '1 hour'"))  # however slow it is
    for number in range(60):
        _put(database, "outside", f"long {number}", 2000)
    for number in range(10):
        _put(database, "outside", f"short {number}", 100, 100)
    claim = "SELECT key, seq, octet_length(payload::text) FROM inturn._claim_small('outside', %s, 'me', %s)"
    rows = database.execute(claim, [4, 1000])
    assert rows == [(f"short {number}", 1, 100) for number in range(4)]
    rows = database.execute(claim, [50, 250])
    assert rows == [(f"short {number}", 1, 100) for number in (4, 5)]
    assert database.execute(claim, [50, 99]) == []


def test_a_claim_that_takes_long_brings_a_short_payload_all_the_same(database: Database) -> None:
    """It looks at payloads for 100 ms: where everything takes long, the claim alone may take longer."""
    database.execute("SELECT inturn.create_topic('outside')")
    _put(database, "outside", "short", 100)
    replace_in(
        database, "claim(text, timestamptz, integer)", ("IF EXISTS", "PERFORM pg_sleep(0.15); IF EXISTS")
    )
    assert database.execute("SELECT key FROM inturn._claim_small('outside', 1, 'me', 1000)") == [("short",)]


def test_of_a_topic_with_merge_rules_what_commands_become_is_claimed_if_it_is_short(
    database: Database,
) -> None:
    """Otherwise the first one is as it is: while long payloads are in hand, it goes on as other topics do."""
    database.execute("""
        SELECT inturn.create_topic('outside');
        CREATE SCHEMA app; GRANT USAGE ON SCHEMA app TO PUBLIC;
        CREATE FUNCTION app.both(first inturn.command, second inturn.command) RETURNS jsonb
            LANGUAGE sql IMMUTABLE AS $$
                SELECT to_jsonb(repeat('x', octet_length(first.payload::text || second.payload::text))) $$;
        SELECT inturn.merge_rule('outside', 'x', 'x', 'sql:app.both'),
               inturn.merge_rule('outside', 'x', 'not', 'nothing')
    """)
    replace_in(database, "_claim_small", ("interval '100 ms'", "interval '1 hour'"))  # however slow it is
    _put(database, "outside", "short", 100, 100, 100)
    _put(database, "outside", "nothing", 100)
    database.execute("SELECT inturn.append('outside', 'nothing', 'not')")
    _put(database, "outside", "becomes long", 600, 600)
    _put(database, "outside", "long", 2000, 100)
    claim = """
        SELECT key, epoch, seq, octet_length(payload::text)
        FROM inturn._claim_small('outside', 50, 'me', 1000)"""
    with database.connect(user=APPLIER) as applier:
        claimed = applier.execute(claim).fetchall()
    assert claimed == [("short", 1, 3, 304), ("becomes long", 1, 1, 600)]
    assert database.execute("SELECT key FROM inturn.key_cursor WHERE lease_until IS NULL ORDER BY key") == [
        ("long",), ("nothing",)
    ]  # fmt: skip
    assert database.value("SELECT applied_seq FROM inturn.key_cursor WHERE key = 'nothing'") == 2
    # What was sent as it is, is recorded so, and what comes after it is whole.
    database.execute("SELECT inturn.advance('outside', 'short', 1, 3), inturn.release('outside', 'short', 1)")
    database.execute("SELECT inturn.advance('outside', 'becomes long', 1, 1)")
    database.execute("SELECT inturn.release('outside', 'becomes long', 1)")
    assert [row[0:3] for row in database.execute(claim)] == [("becomes long", 2, 2)]
    database.execute("SELECT inturn.advance('outside', 'becomes long', 2, 2)")
    assert database.execute("SELECT FROM inturn.verify('outside')") == []
