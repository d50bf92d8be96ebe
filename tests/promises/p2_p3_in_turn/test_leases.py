"""Work outside the database by lease: claim, advance, renew, release and fail, and who is fenced off when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from support.database import Database, Session, until
from support.oracle import Oracle
from support.race import append, blocked, replace_in, unblocked
from support.refusal import refusal

FENCED, OUT_OF_TURN, BUSY = "IT030", "IT032", "IT042"


@pytest.fixture
def orders(witness: Database) -> Database:
    """The witness database; a command is tried twice, leases are long."""
    witness.execute("UPDATE inturn.topic SET max_attempts = 2, lease = '1 hour'")
    return witness


@dataclass(frozen=True)
class Lease:
    """A key that a client has by lease, as one that speaks only SQL holds it."""

    key: str
    epoch: int
    attempt: int
    seqs: tuple[int, ...]

    def advance(self, seq: int) -> tuple[str, list[Any]]:
        return "SELECT inturn.advance('orders', %s, %s, %s)", [self.key, self.epoch, seq]

    def renew(self) -> tuple[str, list[Any]]:
        return "SELECT inturn.renew('orders', %s, %s)", [self.key, self.epoch]

    def release(self) -> tuple[str, list[Any]]:
        return "SELECT inturn.release('orders', %s, %s)", [self.key, self.epoch]

    def fail(self, seq: int, more: str = "") -> tuple[str, list[Any]]:
        return f"SELECT inturn.fail('orders', %s, %s, %s, 'no'{more})", [self.key, self.epoch, seq]


def claim(session: Session | Database, max_keys: int = 1, applier: str = "one") -> list[Lease]:
    rows = session.execute(
        "SELECT key, epoch, attempt, array_agg(seq ORDER BY seq) FROM inturn.claim("
        "topics => '{orders}', max_keys => %s, lease => NULL, applier => %s) GROUP BY 1, 2, 3 ORDER BY 1",
        [max_keys, applier],
    )
    return [Lease(key, epoch, attempt, tuple(seqs)) for key, epoch, attempt, seqs in rows]


def put(database: Database, key: str, count: int = 1) -> None:
    for _ in range(count):
        append(database, key)


def expire(database: Database) -> None:
    """Let every lease run out, by the database's clock as it would be later."""
    database.execute(
        "UPDATE inturn.key_cursor SET lease_until = clock_timestamp(), ready_at = clock_timestamp()"
        " WHERE lease_until IS NOT NULL"
    )


def state(database: Database, key: str = "x") -> tuple[Any, ...]:
    return database.execute(
        "SELECT inturn.key_state(c), applied_seq, epoch, attempts, claimed_by"
        " FROM inturn.key_cursor c WHERE key = %s",
        [key],
    )[0]


def turns(database: Database) -> list[tuple[Any, ...]]:
    return database.execute(
        "SELECT epoch, from_seq, to_seq, outcome, applier FROM inturn.turn ORDER BY epoch"
    )


def test_a_lease_from_claim_to_release(orders: Database) -> None:
    put(orders, "x", 3)
    (lease,) = claim(orders)
    assert lease == Lease("x", 1, 1, (1, 2, 3))
    assert state(orders) == ("leased", 0, 1, 0, "one")
    assert claim(orders) == []
    for seq in lease.seqs:
        assert orders.value(*lease.advance(seq)) is not None
        assert state(orders)[1] == seq
    orders.execute(*lease.release())
    assert state(orders) == ("idle", 3, 1, 0, None)
    assert turns(orders) == [(1, 1, 3, "applied", "one")]
    put(orders, "x")
    (again,) = claim(orders, applier="two")
    assert again == Lease("x", 2, 1, (4,))


def test_a_repeated_advance_changes_nothing_and_no_other_number_is_taken(orders: Database) -> None:
    put(orders, "x", 3)
    (lease,) = claim(orders)
    orders.execute(*lease.advance(1))
    before = state(orders), turns(orders)
    assert orders.value(*lease.advance(1)) is not None
    for statement in (lease.advance(0), lease.advance(3), lease.fail(1), lease.fail(3)):
        assert refusal(orders, *statement).sqlstate == OUT_OF_TURN
    assert (state(orders), turns(orders)) == before
    orders.execute(*lease.advance(2))
    orders.execute(*lease.advance(3))
    assert refusal(orders, *lease.advance(4)).sqlstate == OUT_OF_TURN, "a command that is not there"


def test_an_advance_forgets_the_error_of_the_command_that_is_done(orders: Database) -> None:
    """Also where an operator has given the command its attempts back, so that none is counted."""
    put(orders, "x", 3)
    (lease,) = claim(orders)
    orders.execute(*lease.fail(1))
    orders.execute("SELECT inturn.retry('orders', 'x')")
    (lease,) = claim(orders)
    error = "SELECT last_error FROM inturn.key_cursor"
    assert orders.value(error) == "no"
    orders.execute(*lease.advance(1))
    assert orders.value(error) is None
    orders.execute(*lease.release())
    assert state(orders)[:2] == ("ready", 1)
    assert orders.value("SELECT count(*) FROM inturn.key_mark") == 0


@pytest.mark.parametrize("by_lease", [True, False], ids=["lease", "transaction"])
def test_a_late_applier_is_fenced_off_and_changes_nothing(orders: Database, by_lease: bool) -> None:
    put(orders, "x", 3)
    (late,) = claim(orders)
    orders.execute(*late.advance(1))
    expire(orders)
    if by_lease:
        (fresh,) = claim(orders, applier="two")
        assert fresh == Lease("x", 2, 1, (2,)), "a lost lease is no attempt"
    else:
        orders.execute("CALL inturn.apply()")
        assert [seq for (seq,) in orders.execute("SELECT seq FROM app.witness ORDER BY id")] == [2, 3]
    before = orders.execute("SELECT * FROM inturn.key_cursor"), turns(orders)
    for statement in (late.advance(2), late.renew(), late.release(), late.fail(2)):
        assert refusal(orders, *statement).sqlstate == FENCED
    assert (orders.execute("SELECT * FROM inturn.key_cursor"), turns(orders)) == before


def test_a_lease_that_is_over_counts_until_another_claim(orders: Database) -> None:
    put(orders, "x", 2)
    (lease,) = claim(orders)
    expire(orders)
    orders.execute(*lease.advance(1))
    assert state(orders)[:3] == ("leased", 1, 1), "and is renewed by it"
    expire(orders)
    orders.execute(*lease.renew())
    assert claim(orders) == []


def test_two_claims_of_an_expired_lease_give_it_to_one(orders: Database) -> None:
    put(orders, "x")
    claim(orders)
    expire(orders)
    one, two = orders.session(), orders.session()
    assert claim(one, applier="two") == [Lease("x", 2, 1, (1,))]
    assert (
        unblocked(orders, two, "SELECT key FROM inturn.claim('{orders}'::text[], 10, NULL, NULL)", []) == []
    )
    one.commit()
    two.rollback()
    assert claim(two) == []
    assert state(orders) == ("leased", 0, 2, 0, "two")


def test_a_claim_that_waits_with_advance_is_decided_by_the_epoch(orders: Database) -> None:
    """The late applier's advance waits for the claim that fences it off, and is refused then."""
    put(orders, "x")
    (late,) = claim(orders)
    expire(orders)
    other, mine = orders.session(), orders.session()
    claim(other, applier="two")
    waiting = mine.begin(*late.advance(1))
    assert mine.wait_blocked() == [other.pid]
    other.commit()
    assert getattr(waiting.exception(), "sqlstate", None) == FENCED
    assert state(orders)[1] == 0


def test_a_lost_lease_is_suspicion_and_one_that_was_lost_alone_an_attempt(orders: Database) -> None:
    """B: nobody is blamed for the company he keeps."""
    orders.execute("UPDATE inturn.topic SET backoff_base = '1 us', backoff_cap = '1 us'")
    put(orders, "x", 2)
    claim(orders, applier="crashes")
    expire(orders)
    (again,) = claim(orders, applier="crashes too")
    assert again == Lease("x", 2, 1, (1,)), "no attempt, and without the commands behind it"
    assert turns(orders) == [(1, 1, 0, "lost", "crashes")]
    assert "the lease of crashes ran out at" in orders.value("SELECT last_error FROM inturn.key_cursor")
    for attempt in (1, 2):
        expire(orders)
        assert claim(orders, applier="crashes too") == [], "charged, and tried again later"
        if attempt == 1:
            until(lambda: claim(orders, applier="crashes too"), "the second attempt")
    assert state(orders) == ("held", 0, 3, 2, None)
    assert turns(orders)[1:] == [(2, 1, 0, "retrying", "crashes too"), (3, 1, 0, "held", "crashes too")]
    assert "the lease of crashes too ran out at" in orders.value("SELECT last_error FROM inturn.key_cursor")


def test_of_the_keys_that_were_lost_a_process_has_one_at_a_time(orders: Database) -> None:
    """B: whichever loses it again was alone."""
    for key in ("a", "b", "c"):
        put(orders, key)
    assert len(claim(orders, 9, applier="host:1:1")) == 3
    expire(orders)
    (alone,) = claim(orders, 9, applier="host:1:1")
    put(orders, "fresh")
    until(lambda: claim(orders, 9, applier="host:1:2") == [Lease("fresh", 1, 1, (1,))], "the fresh one")
    (beside,) = until(lambda: claim(orders, 9, applier="host:2:1"), "another process")
    orders.execute(*alone.advance(1))
    orders.execute(*alone.release())
    (third,) = until(lambda: claim(orders, 9, applier="host:1:2"), "the last one")
    assert {alone.key, beside.key, third.key} == {"a", "b", "c"}
    assert orders.value("SELECT max(attempts) FROM inturn.key_cursor") == 0


def test_two_workers_of_a_process_never_begin_two_lost_keys_at_once(orders: Database) -> None:
    """Each looks for the other's, which is not committed yet: so one waits for the other."""
    for key in ("a", "b", "c"):
        put(orders, key)
    assert len(claim(orders, 9, applier="host:1:1")) == 3
    expire(orders)
    one, two = orders.session(), orders.session()
    take = "SELECT key, epoch IS NOT NULL FROM inturn._claim_alone('orders', '-infinity', %s)"
    ((mine, begun),) = one.execute(take, ["host:2:1"])
    assert begun
    waiting = two.begin(take, ["host:2:2"])
    assert two.wait_blocked() == [one.pid]
    one.commit()
    ((other, begun),) = waiting.result()
    assert (other != mine, begun) == (True, False)
    two.rollback()
    # A client's claim by lease looks for them too.
    by_lease = orders.session()
    blocked = orders.session()
    assert claim(by_lease, applier="host:3:1") == [Lease(other, 2, 1, (1,))]
    waiting = blocked.begin(take, ["host:3:2"])
    assert blocked.wait_blocked() == [by_lease.pid]
    by_lease.commit()
    waiting.result()


_TAKE = "SELECT key, epoch IS NOT NULL FROM inturn._claim_alone('orders', '-infinity', %s)"


def test_workers_of_a_process_begin_keys_at_once_of_which_none_was_lost(orders: Database) -> None:
    """At its start each takes twenty alone: a crowd would wait for all their commits, one after the other."""
    for key in ("a", "b"):
        put(orders, key)
    one, two = orders.session(), orders.session()
    assert one.execute(_TAKE, ["host:1:1"]) == [("a", True)]
    two.execute("SET LOCAL lock_timeout = '10 s'")  # it waits for nothing
    assert two.execute(_TAKE, ["host:1:2"]) == [("b", True)]


def test_a_lost_key_is_not_begun_beside_one_whose_claim_is_not_committed_yet(orders: Database) -> None:
    put(orders, "lost")
    assert orders.execute(_TAKE, ["host:1:1"]) == [("lost", True)]
    expire(orders)
    put(orders, "fresh")
    replace_in(orders, "_claim_alone", ("interval '1 s'", "interval '1 h'"))  # however long two waits
    orders.execute("UPDATE inturn.ticket SET ready_at = now() - interval '1 hour' WHERE key = 'fresh'")
    one, two = orders.session(), orders.session()
    assert one.execute(_TAKE, ["host:2:1"]) == [("fresh", True)]
    waiting = two.begin(_TAKE, ["host:2:2"])
    assert two.wait_blocked() == [one.pid]
    one.commit()
    assert waiting.result() == [("lost", False)], "put off: its process has another key"


def test_a_key_of_which_nothing_can_be_recorded_is_put_off_ever_longer(orders: Database) -> None:
    put(orders, "x")
    orders.execute("""
        CREATE FUNCTION app.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'nothing can be written'; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON inturn.turn FOR EACH ROW EXECUTE FUNCTION app.refuse();
    """)
    for wait in (1, 2, 4):
        epoch = orders.value("SELECT epoch FROM inturn._claim_alone('orders', '-infinity', 'one')")
        assert (
            orders.value("SELECT inturn._lose_alone('orders', 'x', %s, 'boom', true)", [epoch]) == "put off"
        )
        error, attempts, seconds = orders.execute(
            "SELECT last_error, attempts, extract(epoch FROM ready_at - failed_at) FROM inturn.key_cursor"
        )[0]
        assert error == "its failure could not be recorded: nothing can be written\nboom"
        assert attempts == 0
        assert seconds == wait
        orders.execute("UPDATE inturn.ticket SET ready_at = clock_timestamp()")


def test_a_key_that_was_lost_is_taken_alone_beside_nothing_of_its_process(orders: Database) -> None:
    """Neither begins while the other is in hand: what takes the process down then was alone."""

    def take(applier: str) -> list[tuple[Any, ...]]:
        taken = orders.execute(
            "SELECT key, epoch IS NOT NULL FROM inturn._claim_alone('orders', '-infinity', %s)", [applier]
        )
        # They are short: none may run out before the test lets it, nor seem to take long.
        orders.execute(
            "UPDATE inturn.key_cursor SET claimed_at = now() + '1 h', lease_until = now() + '1 h',"
            " ready_at = now() + '1 h' WHERE lease_until > now()"
        )
        return taken

    put(orders, "lost")
    assert take("host:1:1") == [("lost", True)]
    expire(orders)
    put(orders, "fresh")
    orders.execute("UPDATE inturn.ticket SET ready_at = now() - interval '1 hour' WHERE key = 'fresh'")
    assert take("host:1:1") == [("fresh", True)]
    assert take("host:1:2") == [("lost", False)], "put off: its process has another key"
    (again,) = until(lambda: take("host:2:1"), "another process")
    assert again == ("lost", True)
    put(orders, "late")
    assert take("host:2:2") == [(None, False)], "its process has a key that was lost"
    assert take("host:3:1") == [("late", True)]


@pytest.mark.parametrize(
    ("more", "outcome", "after"),
    [
        ("", "retrying", ("retrying", 1)),
        (""", '{"verdict": "hold"}'""", "held", ("held", 1)),
        (""", '{"verdict": "skip"}'""", "skipped", ("ready", 2)),
        (""", '{"retry_after": "0"}'""", "retrying", ("retrying", 1)),
    ],
)
def test_a_command_that_fails_ends_the_lease(
    orders: Database, more: str, outcome: str, after: tuple[str, int]
) -> None:
    put(orders, "x", 3)
    (lease,) = claim(orders)
    orders.execute(*lease.advance(1))
    assert orders.value(*lease.fail(2, more)) == outcome
    assert state(orders)[:2] == after
    assert turns(orders) == [(1, 1, 1, outcome, "one")]
    assert refusal(orders, *lease.advance(2)).sqlstate == FENCED


def test_release_finds_what_was_appended_meanwhile_and_leaves_no_key_idle_on_it(orders: Database) -> None:
    put(orders, "x")
    (lease,) = claim(orders)
    put(orders, "x")
    orders.execute(*lease.advance(1))
    orders.execute(*lease.release())
    assert state(orders)[0] == "ready"
    (lease,) = claim(orders)
    caller, applier = orders.session(), orders.session()
    append(caller, "x")
    orders.execute(*lease.advance(2))
    unblocked(orders, applier, *lease.release())
    applier.commit()
    assert state(orders)[0] == "ready", "went to sleep although a caller may be about to commit"
    caller.commit()
    (lease,) = claim(orders)
    assert lease.seqs == (3,)


def test_a_caller_never_waits_for_a_lease(orders: Database) -> None:
    put(orders, "x")
    claim(orders)
    caller = orders.session()
    assert unblocked(orders, caller, "SELECT inturn.append('orders', 'x', 'insert')", []) == [(2,)]


def test_a_caller_beside_a_release_waits_for_it_and_wakes_the_key(orders: Database) -> None:
    put(orders, "x")
    (lease,) = claim(orders)
    orders.execute(*lease.advance(1))
    applier, caller = orders.session(), orders.session()
    applier.execute(*lease.release())
    waiting = caller.begin("SELECT inturn.append('orders', 'x', 'insert')")
    assert caller.wait_blocked() == [applier.pid]
    applier.commit()
    waiting.result()
    caller.commit()
    assert state(orders)[0] == "ready"


def test_a_pause_takes_effect_after_the_command_in_hand(orders: Database) -> None:
    put(orders, "x", 3)
    (lease,) = claim(orders)
    orders.execute("SELECT inturn.pause('orders', 'x')")
    assert orders.value(*lease.renew()) is not None
    assert claim(orders) == []
    assert orders.value(*lease.advance(1)) is None
    assert state(orders) == ("paused", 1, 1, 0, None)
    assert refusal(orders, *lease.advance(2)).sqlstate == FENCED
    orders.execute("SELECT inturn.resume('orders', 'x')")
    assert claim(orders)[0].seqs == (2, 3)


def test_a_key_resumed_while_its_lease_runs_is_nobody_elses(orders: Database) -> None:
    put(orders, "x", 2)
    (lease,) = claim(orders)
    orders.execute("SELECT inturn.pause('orders', 'x'), inturn.resume('orders', 'x')")
    assert claim(orders, applier="two") == []
    assert orders.value(*lease.advance(1)) is not None


def test_a_paused_topic_takes_its_leases_back_after_the_command_in_hand(orders: Database) -> None:
    put(orders, "x", 2)
    (lease,) = claim(orders)
    orders.execute("SELECT inturn.pause_topic('orders')")
    assert orders.value(*lease.advance(1)) is None
    assert claim(orders) == []
    orders.execute("SELECT inturn.resume_topic('orders')")
    assert claim(orders)[0].seqs == (2,)


def test_a_failure_under_a_pause_stays_paused(orders: Database) -> None:
    put(orders, "x")
    (lease,) = claim(orders)
    orders.execute("SELECT inturn.pause('orders', 'x')")
    orders.execute(*lease.fail(1))
    assert state(orders) == ("paused", 0, 1, 1, None)
    assert orders.value("SELECT ready_at FROM inturn.key_cursor") is None


@pytest.mark.parametrize(
    "action",
    [
        "SELECT inturn.skip('orders', 'x', 1, 'no')",
        "SELECT inturn.cancel_rest('orders', 'x', 'no')",
        "SELECT inturn.amend('orders', 'x', 1, 'no', name => 'update')",
    ],
)
def test_an_operator_waits_for_the_lease_no_longer_than_told(orders: Database, action: str) -> None:
    put(orders, "x", 2)
    (lease,) = claim(orders, applier="shop:7")
    refused = refusal(orders, f"SET lock_timeout = '50 ms'; {action}")
    assert refused.sqlstate == BUSY
    assert "is in hand: leased by shop:7 until" in refused.message
    operator = orders.session()
    acting = operator.begin(action)
    asks = "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"
    until(
        lambda: orders.value(f"SELECT EXISTS ({asks})", [operator.pid]), "the operator to wait for the lease"
    )
    orders.execute(*lease.advance(1))
    orders.execute(*lease.release())
    assert not blocked(orders, operator, acting)
    # Command 1 is applied by now: only what concerns the rest can still be done.
    assert (acting.exception() is None) == ("cancel_rest" in action)


def test_leases_and_turns_leave_what_the_oracle_accepts_of_sequence_and_cursor(orders: Database) -> None:
    Oracle(orders)
    put(orders, "x", 2)
    (lease,) = claim(orders)
    orders.execute(*lease.advance(1))
    expire(orders)
    (lease,) = claim(orders, applier="two")
    orders.execute(*lease.advance(2))
    orders.execute(*lease.release())
    assert orders.execute("SELECT applied_seq FROM inturn.turn WHERE drained") == [(2,)]


def test_a_claim_takes_no_more_keys_than_asked_for_over_all_topics(orders: Database) -> None:
    orders.execute("SELECT inturn.create_topic('bills')")
    for key in "abc":
        put(orders, key)
        orders.execute("SELECT inturn.append('bills', %s, 'send')", [key])
    rows = orders.execute(
        "SELECT topic, key FROM inturn.claim('{bills,orders}'::text[], 4, '1 minute', NULL)"
    )
    assert rows == [("bills", "a"), ("bills", "b"), ("bills", "c"), ("orders", "a")]
    assert refusal(orders, "SELECT inturn.claim('{no}'::text[], 1, NULL, NULL)").sqlstate == "IT001"


def test_a_key_with_nothing_to_apply_is_no_lease(orders: Database) -> None:
    put(orders, "x")
    caller = orders.session()
    append(caller, "x")
    (lease,) = claim(orders)
    orders.execute(*lease.advance(1))
    orders.execute(*lease.release())
    assert claim(orders) == []
    assert state(orders) == ("ready", 1, 1, 0, None)
    caller.rollback()
    until(lambda: (claim(orders), state(orders)[0] == "idle")[1], "idle")


def test_lease_ends_are_the_databases_time_and_as_long_as_asked(orders: Database) -> None:
    put(orders, "x")
    (until_time, now) = orders.execute(
        "SELECT lease_until, clock_timestamp() FROM inturn.claim('{orders}'::text[], 1, '10 minutes', NULL)"
    )[0]
    assert 590 < (until_time - now).total_seconds() <= 600
    renewed, now = orders.execute("SELECT inturn.renew('orders', 'x', 1, '20 minutes'), clock_timestamp()")[0]
    assert 1190 < (renewed - now).total_seconds() <= 1200
