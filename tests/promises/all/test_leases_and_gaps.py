"""P2 to P6 for work by lease and for numbers that callers give: the scenes, and what nobody should do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from support import gap_scenes, lease_scenes, scenes
from support.database import Database, until
from support.lease_scenes import claim, expire
from support.oracle import Oracle
from support.plans import believe, buffers, explain
from support.race import append
from support.refusal import refusal
from support.roles import OWNER

SCENES = [
    scene
    for module in (lease_scenes, gap_scenes)
    for name, scene in vars(module).items()
    if getattr(scene, "__module__", "") == module.__name__
    and getattr(scene, "__annotations__", {}).keys() == {"database", "oracle", "return"}
]
WRONG = "22023"


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_leases_and_gaps_keep_the_promises(
    witness: Database, scene: Callable[[Database, Oracle], None]
) -> None:
    scene(witness, Oracle(witness))


@pytest.mark.parametrize("lease", ["'0'", "'-1 hour'", "'1 day 1 second'", "'-infinity'::text::interval"])
def test_a_lease_of_no_length_or_without_end_is_refused(witness: Database, lease: str) -> None:
    Oracle(witness)
    held = lease_scenes.put(witness, 1)
    before = witness.execute("SELECT * FROM inturn.key_cursor")
    append(witness, "y")
    if "infinity" in lease and witness.value("SELECT current_setting('server_version_num')::int < 170000"):
        pytest.skip("interval has no infinity before PostgreSQL 17")
    for query in (
        f"SELECT inturn.claim('{{orders}}'::text[], 1, {lease}, NULL)",
        f"SELECT inturn.advance('orders', 'x', {held.epoch}, 1, {lease})",
        f"SELECT inturn.renew('orders', 'x', {held.epoch}, {lease})",
    ):
        found = refusal(witness, query)
        assert found.sqlstate == WRONG, query
        assert "10 ms to 1 day are allowed" in found.message
    assert witness.execute("SELECT * FROM inturn.key_cursor WHERE key = 'x'") == before


def test_a_claim_of_no_keys_or_topics_claims_nothing(witness: Database) -> None:
    append(witness, "x")
    claim = "SELECT key FROM inturn.claim(topics => {}, max_keys => {}, lease => NULL, applier => NULL)"
    assert witness.execute(claim.format("'{orders}'", 0)) == []
    assert witness.execute(claim.format("'{}'", 1)) == []
    for topics, max_keys, sqlstate in (
        ("'{orders}'", "NULL", WRONG),
        ("'{orders}'", "-1", WRONG),
        ("NULL", "1", "22004"),
        ("'{NULL}'", "1", "IT001"),
    ):
        assert refusal(witness, claim.format(topics, max_keys)).sqlstate == sqlstate, (
            topics,
            max_keys,
        )
    assert witness.value("SELECT epoch FROM inturn.key_cursor") == 0
    assert witness.execute(claim.format("'{orders,orders}'", 5)) == [("x",)]


@pytest.mark.parametrize("gap", [False, True], ids=["open_append", "gap"])
def test_a_claim_under_a_savepoint_is_a_claim(witness: Database, gap: bool) -> None:
    """So clients do whose library opens one for every block, or who catch exceptions in plpgsql."""
    oracle = Oracle(witness)
    append(witness, "x")
    key, topic = "y", "orders"
    caller = witness.session()
    if gap:
        topic, key = "given", "z"
        gap_scenes.begin(witness, ", gap_timeout => '50 ms'")
        gap_scenes.put(witness, 2, key=key)
        until(
            lambda: witness.value(
                "SELECT ready_at < clock_timestamp() FROM inturn.key_cursor WHERE key = 'z'"
            ),
            "ready",
        )
    else:
        append(witness, key)
        append(caller, key)
        scenes.apply(witness)
        append(witness, "x")
        assert "y" in scenes.ready(witness)
        witness.execute("UPDATE inturn.key_cursor SET ready_at = clock_timestamp() WHERE key = 'y'")
    client = witness.session()
    client.execute("SAVEPOINT s")
    leases = claim(client, 5) + (claim(client, 5, topic=topic) if gap else [])
    client.execute("RELEASE s")
    client.commit()
    assert [lease.key for lease in leases] == ["x"], "a key without a command comes as none"
    if gap:
        assert witness.value("SELECT held_at FROM inturn.key_cursor WHERE key = 'z'") is not None
    oracle.check()
    caller.commit()
    for seq in leases[0].seqs:
        leases[0].work(witness, seq)
    witness.execute(*leases[0].step("release"))
    gap_scenes.put(witness, 1, key="z") if gap else None
    scenes.drain(witness, oracle)


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_claim_by_lease_on_one_snapshot_is_refused(witness: Database, isolation: str) -> None:
    append(witness, "x")
    client = witness.session()
    client.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
    scenes.refused(client, "IT031", ("SELECT inturn.claim('{orders}'::text[], 1, NULL, NULL)", []))


def test_an_expired_lease_is_no_obstacle_to_operators_and_fences_its_holder(witness: Database) -> None:
    oracle = Oracle(witness)
    for action in ("skip('orders', 'x', {seq}, 'no')", "cancel_rest('orders', 'x', 'no')"):
        late = lease_scenes.put(witness, 2)
        expire(witness)
        witness.execute(f"SELECT inturn.{action.format(seq=late.seqs[0])}")
        lease_scenes.all_fenced(witness, late, late.seqs[0])
        scenes.drain(witness, oracle)
    gap_scenes.begin(witness)
    gap_scenes.put(witness, 1, 3, key="z")
    (late,) = claim(witness, topic="given")
    late.work(witness, 1)
    expire(witness)
    assert refusal(witness, "SELECT inturn.fill_gap('given', 'z', 2, 'no')").sqlstate == "IT041"
    assert claim(witness, topic="given") == []
    witness.execute("SELECT inturn.fill_gap('given', 'z', 2, 'no')")
    lease_scenes.all_fenced(witness, late, 3)
    scenes.drain(witness, oracle)


def test_a_target_that_changes_waits_for_the_leases_that_run(witness: Database) -> None:
    """P2: from HTTP to SQL while a client works: the turn in the database comes after the lease."""
    oracle = Oracle(witness)
    witness.execute("SELECT inturn.set_topic('orders', target => 'http://b.internal/commands')")
    lease = lease_scenes.put(witness, 2)
    witness.execute("SELECT inturn.set_topic('orders', target => 'sql:app.apply_order')")
    scenes.apply(witness)
    assert witness.execute("SELECT * FROM app.witness") == []
    lease.work(witness, 1)
    expire(witness)
    scenes.apply(witness)
    assert witness.execute("SELECT seq FROM app.witness") == [(2,)]
    lease_scenes.all_fenced(witness, lease, 2)
    assert scenes.drain(witness, oracle) == 2


def test_numbers_at_the_ends_of_bigint_are_refused_and_break_nothing(witness: Database) -> None:
    top = 2**63 - 1
    for setting in (f"first_seq => {top}", f"max_ahead => {top}"):
        found = refusal(witness, f"SELECT inturn.create_topic('far', numbering => 'given', {setting})")
        assert found.sqlstate == "IT011"
    gap_scenes.begin(witness, ", first_seq => 0, max_ahead => 1000000000")
    for seq, sqlstate in ((top, "IT053"), (-top, "IT050"), (10**9, "IT053")):
        found = refusal(witness, gap_scenes.APPEND, ["x", seq])
        assert found.sqlstate == sqlstate
    gap_scenes.put(witness, 0, 1)
    scenes.apply(witness)
    assert witness.execute("SELECT seq FROM app.witness ORDER BY id") == [(0,), (1,)]


def test_over_a_gap_of_a_million_numbers_nothing_is_cancelled(witness: Database) -> None:
    """Each number would be an entry in skip: what is pending is few, and what is missing has no end."""
    gap_scenes.begin(witness, ", max_attempts => 1, on_exhausted => 'cancel-rest', max_ahead => 1000000000")
    witness.execute("SELECT inturn.append('given', 'x', 'fail', seq => 1)")
    gap_scenes.put(witness, 1_000_003)
    scenes.apply(witness)
    assert witness.execute("SELECT outcome FROM inturn.turn") == [("held",)]
    refused = refusal(witness, "SELECT inturn.cancel_rest('given', 'x', 'wrong')")
    assert refused.sqlstate == "IT041"
    assert "has more than 1000000 numbers missing" in refused.message
    assert witness.execute("SELECT FROM inturn.cancel_rest_all('wrong', 'given')") == []
    witness.execute("SELECT inturn.skip('given', 'x', 1, 'wrong')")
    gap_scenes.put(witness, 2)
    scenes.apply(witness)
    assert witness.execute("SELECT seq FROM inturn.skip") == [(1,)]
    assert witness.execute("SELECT seq FROM app.witness") == [(2,)]
    assert witness.execute("SELECT * FROM inturn.verify('given')") == []


def test_p5_a_step_costs_the_same_beside_many_keys_and_many_commands(witness: Database) -> None:
    """Whether the tables were never analyzed, or when they were empty."""
    gap_scenes.begin(witness)
    for topic in ("orders", "given"):
        witness.execute(
            "SELECT count(inturn.append(%s, 'k' || i, 'insert', seq => CASE %s WHEN 'given' THEN 1 END))"
            " FROM generate_series(1, 5000) i",
            [topic, topic],
        )
    witness.execute(
        "INSERT INTO inturn.turn"
        " (topic, key, epoch, from_seq, to_seq, applied_seq, drained, outcome, applier, started_at)"
        " SELECT topic, key, 1, 1, 1, 1, true, 'applied', 'crowd', now() FROM inturn.ticket"
    )
    witness.execute("DELETE FROM inturn.ticket")
    witness.execute("VACUUM inturn.ticket")
    witness.execute("SELECT count(inturn.append('orders', 'x', 'insert')) FROM generate_series(1, 3000)")
    witness.execute(
        "SELECT count(inturn.append('given', 'y', 'insert', seq => i)) FROM generate_series(2, 3000) i"
    )
    for statistics in ((0, -1), (0, 0)):
        believe(witness, ("ticket", "key_mark", "key_sequence", "command_log", "turn"), statistics)
        least = _least_costs(witness.connect(user=OWNER))
        assert max(least.values()) < 100, (statistics, least)


def _least_costs(connection: psycopg.Connection[Any]) -> dict[str, int]:
    """Return how many blocks each step of the keys x and y reads."""
    costs = defaultdict(list)
    for _ in range(9):  # the first ones read the catalog, and five times a statement is planned anew
        for step in (
            "inturn.claim(ARRAY['orders'], 1, NULL, NULL)",
            "inturn.advance('orders', 'x', epoch, applied_seq + 1) {of} ('orders', 'x')",
            "inturn.renew('orders', 'x', epoch) {of} ('orders', 'x')",
            "inturn.release('orders', 'x', epoch) {of} ('orders', 'x')",
            "inturn.append('given', 'y', 'insert', seq => 3001)",
            "inturn.append('given', 'y', 'insert', seq => 2)",
        ):
            of = "FROM inturn.key_cursor WHERE (topic, key) ="
            costs[step].append(buffers(explain(connection, f"SELECT {step.format(of=of)}")))
    return {step: min(read[-3:]) for step, read in costs.items()}
