"""P4 and passes: a ready key is found by the next pass, however late what made it ready was committed.

A pass leaves out what turns before it left in the index, and no ticket that can still come to be seen.
"""

from __future__ import annotations

import pytest
from support.database import Database, Session, until
from support.race import append, replace_in, unblocked
from support.roles import APPLIER, OWNER

from inturn.applier.inside.passes import Passes


@pytest.fixture(autouse=True)
def _every_pass_walks(database: Database) -> None:
    """However long a walk took: on a busy machine that says nothing."""
    replace_in(database, "_begin_pass", (r"interval '5 ms'", "interval '1 hour'"))


class Round:
    """An applier that goes round: passes, and what it claims where they say."""

    def __init__(self, database: Database) -> None:
        self._connection = database.connect(user=APPLIER)
        self._passes = Passes("inturn")
        self._passes.serve(self._connection, ["orders"])

    def claim(self) -> list[str]:
        """Make a pass, and return the keys that the visits after it would claim; they stay as they are."""
        keys: list[str] = []
        for topic in self._passes.begin(self._connection):
            rows = self._connection.execute(
                "SELECT key FROM inturn.claim(%s, %s::timestamptz, 100)", [topic, self._passes.hand(topic)]
            )
            keys += [key for (key,) in rows]
        return keys


@pytest.mark.parametrize("youngest", [True, False])
def test_p4_a_key_whose_caller_commits_between_two_passes_is_found_by_the_second(
    witness: Database, youngest: bool
) -> None:
    """No transaction that began after the caller's has ended: no snapshot shows that its number is given."""
    caller = witness.session()

    def others() -> None:
        if not youngest:
            witness.execute("SELECT pg_current_xact_id()")

    for passes in range(4):
        key, applier = f"after {passes}", Round(witness)
        assert applier.claim() == []
        append(caller, key)
        for _ in range(passes):
            others()
            assert applier.claim() == []
        others()
        caller.commit()
        for _ in range(3):
            others()
            assert applier.claim() == [key]
        witness.execute("CALL inturn.apply()")


def test_p4_a_topic_that_becomes_ready_during_the_pass_is_found_with_its_place(witness: Database) -> None:
    """By one look at the clock: two would find it in one list and not in the other."""
    append(witness, "x")
    witness.execute("""
        CREATE SEQUENCE app.tick;
        CREATE FUNCTION app.clock() RETURNS timestamptz LANGUAGE sql VOLATILE AS
            $$ SELECT timestamptz '2030-01-01' + nextval('app.tick') * interval '1 us' $$;
        SELECT inturn.create_topic('later', 'python');
        SELECT inturn.append('later', 'y', 'insert');
    """)
    definition = witness.value("SELECT pg_get_functiondef('inturn._begin_pass'::regproc)")
    witness.execute(definition.replace("clock_timestamp()", "app.clock()"))
    for tick in range(1, 12):
        witness.execute("SELECT setval('app.tick', 1)")
        witness.execute(
            "UPDATE inturn.ticket SET ready_at = timestamptz '2030-01-01' + %s * interval '1 us'"
            " WHERE topic = 'later'",
            [tick],
        )
        found, starts, due = witness.execute(
            "SELECT found, starts::text[], due FROM inturn._begin_pass('{orders,later}', NULL)"
        )[0]
        assert len(found) == len(starts) == (1 if due else 2), tick


def _make_walks_long(database: Database) -> None:
    """As beside a transaction that writes for hours, under a held snapshot."""
    long = (r"interval '1 hour'", "interval '-1 hour'"), (r"\* 20\b", "* 0 + interval '1 day'")
    replace_in(database, "_begin_pass", *long)


def test_p4_a_key_committed_late_is_found_by_the_next_walk_though_passes_between_do_not_look(
    witness: Database,
) -> None:
    _make_walks_long(witness)
    applier = Round(witness)
    caller = witness.session()
    append(caller, "x")
    append(witness, "other")
    assert applier.claim() == ["other"]  # a walk
    for _ in range(3):
        # All that was open at the walk but the caller has ended: a pass may call more of the past safe.
        witness.execute("SELECT pg_current_xact_id()")
        assert applier.claim() == ["other"]
    caller.commit()
    for _ in range(3):
        witness.execute("SELECT pg_current_xact_id()")
        assert applier.claim() == ["other"]
    replace_in(witness, "_begin_pass", (r"now >= pass\.walk_at", "true"))
    assert sorted(applier.claim()) == ["other", "x"]


def test_p4_where_nothing_else_is_ready_a_key_committed_late_is_found_at_once(witness: Database) -> None:
    """So a drain ends, and an applier sleeps, only when nothing is ready."""
    _make_walks_long(witness)
    applier = Round(witness)
    caller = witness.session()
    append(caller, "x")
    for _ in range(3):
        witness.execute("SELECT pg_current_xact_id()")
        assert applier.claim() == []
    caller.commit()
    assert applier.claim() == ["x"]


def _leave_hint(session: Session, key: str) -> None:
    """Append at REPEATABLE READ, which leaves a hint."""
    session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    append(session, key)


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_p4_a_hint_that_another_applier_held_at_the_pass_is_taken_by_a_later_one(
    witness: Database, end: str
) -> None:
    append(witness, "x")
    witness.execute("CALL inturn.apply()")
    caller, other = witness.session(), witness.session()
    applier = Round(witness)
    assert applier.claim() == []
    _leave_hint(caller, "x")
    assert applier.claim() == []
    caller.commit()
    other.execute("SELECT inturn._take_hints('{orders}')")
    for _ in range(3):
        assert applier.claim() == []
    {"commit": other.commit, "rollback": other.rollback}[end]()
    for _ in range(3):
        assert applier.claim() == ["x"]


def test_p4_more_hints_than_a_pass_takes_are_taken_by_the_next_ones(witness: Database) -> None:
    count = 1500
    many = "SELECT inturn.append_many('orders', array_agg('k' || n), array_agg('insert'::text))"
    witness.execute(f"{many} FROM generate_series(1, {count}) n")
    witness.execute("CALL inturn.apply()")
    applier = Round(witness)
    caller = witness.session()
    caller.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    caller.execute(f"{many} FROM generate_series(1, {count}) n")
    assert applier.claim() == []
    caller.commit()
    for _ in range(4):
        applier.claim()
    assert witness.value("SELECT count(*) FROM inturn.ticket") == count


CLAIM = "SELECT DISTINCT key FROM inturn.claim('{orders}', 10, '1 day', 'me')"


def _let_the_pass_be_saved(database: Database) -> None:
    """As a moment later: the next claim saves where it left off."""
    database.execute(
        "UPDATE inturn.saved_pass SET saved_at = saved_at - interval '1 hour' WHERE ctid = ANY (ARRAY("
        "SELECT ctid FROM inturn.saved_pass FOR UPDATE SKIP LOCKED))"
    )


def test_p6_the_first_claims_by_lease_do_not_wait_for_each_other(witness: Database) -> None:
    append(witness, "x")
    append(witness, "y")
    first, second = witness.session(), witness.session()
    first.execute("SELECT DISTINCT key FROM inturn.claim('{orders}', 1, NULL, 'me')")
    assert unblocked(witness, second, CLAIM, []) == [("y",)]


@pytest.mark.parametrize("end", ["commit", "rollback", "kill"])
def test_p4_a_claim_by_lease_finds_what_was_committed_late(witness: Database, end: str) -> None:
    """Whatever became of the client that claimed in between."""
    caller = witness.session()
    for passes in range(4):
        witness.execute("DELETE FROM inturn.saved_pass")
        key, between = f"after {passes}", witness.session()
        assert witness.execute(CLAIM) == []
        append(caller, key)
        for _ in range(passes):
            _let_the_pass_be_saved(witness)
            assert witness.execute(CLAIM) == []
        _let_the_pass_be_saved(witness)
        between.execute(CLAIM)
        caller.commit()
        if end == "kill":
            between.kill()
        else:
            {"commit": between.commit, "rollback": between.rollback}[end]()
        _let_the_pass_be_saved(witness)
        assert witness.execute(CLAIM) == [(key,)]


def test_p4_a_claim_by_lease_that_is_rolled_back_leaves_its_keys_to_be_found(witness: Database) -> None:
    early = witness.session()
    append(witness, "x")
    append(witness, "y")
    for _ in range(3):
        _let_the_pass_be_saved(witness)
        assert len(early.execute(CLAIM)) == 2
        _let_the_pass_be_saved(witness)
        assert unblocked(witness, witness.session(autocommit=True), CLAIM, []) == []
        early.rollback()
    assert len(witness.execute(CLAIM)) == 2


def _hold_a_snapshot(database: Database) -> None:
    holder = database.session()
    holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    holder.execute("SELECT FROM inturn.topic")


def _entries_read(session: Session, index: str) -> int:
    """How many entries of an index the session's open transaction has read, dead ones too."""
    ((read,),) = session.execute("SELECT pg_stat_get_xact_tuples_returned(%s::regclass)", [f"inturn.{index}"])
    return int(read)


def test_p5_once_a_minute_two_claims_by_lease_look_at_everything_once_not_all_of_a_moment(
    witness: Database,
) -> None:
    replace_in(witness, "_begin_saved_pass", (r"interval '100 ms'", "interval '1 hour'"))
    replace_in(witness, "_begin_pass", (r"interval '1 minute'", "interval '1 hour'"))  # but for once, below
    for _ in range(3):
        assert witness.execute(CLAIM) == []
    _hold_a_snapshot(witness)
    witness.execute(
        "INSERT INTO inturn.ticket SELECT 'orders', 'k' || n, 0, 0, clock_timestamp()"
        " FROM generate_series(1, 1000) n"
    )
    witness.execute("DELETE FROM inturn.ticket")
    witness.execute("UPDATE inturn.saved_pass SET pass.whole_at = clock_timestamp()")
    client = witness.session()
    read = [_entries_read(client, "ticket_ready")]
    for _ in range(4):
        client.execute(CLAIM)
        read.append(_entries_read(client, "ticket_ready"))  # the sum so far
        client.commit()
    assert [round(number / 1000) for number in read] == [0, 1, 2, 2, 2], read


def test_p5_a_claim_by_lease_does_not_walk_over_passes_that_were_replaced(
    witness: Database,
) -> None:
    replace_in(witness, "_begin_pass", (r"interval '1 minute'", "interval '1 hour'"))
    for _ in range(3):  # the first ones look at everything
        assert witness.execute(CLAIM) == []
        _let_the_pass_be_saved(witness)
    witness.execute(CLAIM)
    _hold_a_snapshot(witness)
    witness.execute(
        "INSERT INTO inturn.saved_pass SELECT topics_hash, topics, saved_at - n * interval '1 minute', pass"
        " FROM inturn.saved_pass, generate_series(1, 1000) n"
    )
    witness.execute(
        "DELETE FROM inturn.saved_pass WHERE saved_at < (SELECT max(saved_at) FROM inturn.saved_pass)"
    )
    saved_at = witness.value("SELECT saved_at FROM inturn.saved_pass")
    until(
        lambda: witness.value("SELECT clock_timestamp() > %s + interval '0.1 s'", [saved_at]),
        "the pass is old enough to be replaced",
    )
    client = witness.session()
    client.execute(CLAIM)
    read = _entries_read(client, "saved_pass_pkey")
    client.commit()
    assert witness.value("SELECT saved_at > %s FROM inturn.saved_pass", [saved_at])
    assert read < 100


def test_p5_a_claim_alone_does_not_walk_over_leases_that_are_over(witness: Database) -> None:
    _hold_a_snapshot(witness)
    witness.execute(
        "INSERT INTO inturn.key_mark (topic, key, epoch, claimed_by, lease_until)"
        " SELECT 'orders', 'k' || n, 0, 'host:1:1', now() FROM generate_series(1, 1000) n"
    )
    witness.execute("DELETE FROM inturn.key_mark WHERE key LIKE 'k%'")
    witness.execute(
        "INSERT INTO inturn.key_mark (topic, key, epoch, claimed_by, lease_until)"
        " VALUES ('orders', 'x', 0, 'host:2:1', now() + interval '1 h')"
    )
    owner = witness.session(user=OWNER)
    for process, has in (("host:1", False), ("host:2", True), ("host:3", False)):
        assert owner.execute("SELECT inturn._has_leases(%s, false)", [process]) == [(has,)]
    assert _entries_read(owner, "key_mark_leased") < 10
