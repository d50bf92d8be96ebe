"""Scenes of work by lease, each decided by a guard in the SQL: see scenes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from support.database import Database, Session, until
from support.oracle import Oracle
from support.race import append, unblocked
from support.scenes import FENCED, drain, refused, snapshot

OUT_OF_TURN, BUSY = "IT032", "IT042"


@dataclass(frozen=True)
class Lease:
    """A key that a client has by lease."""

    key: str
    epoch: int
    seqs: tuple[int, ...]
    topic: str = "orders"

    def step(self, function: str, *more: Any) -> tuple[str, list[Any]]:
        """Return the statement, with parameters, that reports something under the lease."""
        marks = ", %s" * (2 + len(more))
        return f"SELECT inturn.{function}(%s{marks})", [self.topic, self.key, self.epoch, *more]

    def advance(self, seq: int | None) -> tuple[str, list[Any]]:
        return self.step("advance", seq)

    def fail(self, seq: int | None) -> tuple[str, list[Any]]:
        return self.step("fail", seq, "failed by hand")

    def work(self, session: Database | Session, seq: int) -> Any:
        """Let a command take effect outside, then report it; return until when the lease runs."""
        session.execute("SELECT app.effect(%s, %s, %s)", [self.key, seq, self.epoch])
        return session.execute(*self.advance(seq))[0][0]


def claim(
    session: Database | Session, max_keys: int = 1, applier: str = "one", topic: str = "orders"
) -> list[Lease]:
    """Claim by lease, as the oracle knows of it."""
    rows = session.execute(
        "SELECT key, epoch, array_agg(seq ORDER BY seq) FROM app.claim(ARRAY[%s], %s, %s)"
        " GROUP BY 1, 2 ORDER BY 1",
        [topic, max_keys, applier],
    )
    return [Lease(key, epoch, tuple(seqs), topic) for key, epoch, seqs in rows]


def expire(database: Database) -> None:
    """Let every lease run out, as the database's clock would."""
    database.execute(
        "UPDATE inturn.key_cursor SET lease_until = now(),"
        " ready_at = CASE WHEN ready_at IS NOT NULL THEN now() END WHERE lease_until IS NOT NULL"
    )


def put(database: Database, count: int, key: str = "x") -> Lease:
    """Append so many commands to a key and claim it."""
    for _ in range(count):
        append(database, key)
    leases = claim(database)
    assert leases, "the claim brings no command"
    return leases[0]


def all_fenced(database: Database, late: Lease, seq: int) -> None:
    """Whatever a late client reports is refused, and changes nothing."""
    session = database.session()
    before = (
        database.execute("SELECT * FROM inturn.key_cursor"),
        database.execute("SELECT * FROM inturn.turn"),
    )
    for statement in (late.advance(seq), late.fail(seq), late.step("renew"), late.step("release")):
        refused(session, FENCED, statement)
    assert before == (
        database.execute("SELECT * FROM inturn.key_cursor"),
        database.execute("SELECT * FROM inturn.turn"),
    )


def late_after_another_claim(database: Database, oracle: Oracle) -> None:
    """P2: the next claim's epoch fences off who has let the lease run out."""
    late = put(database, 2)
    oracle.check()
    late.work(database, 1)
    expire(database)
    (lease,) = claim(database, applier="two")
    all_fenced(database, late, 2)
    lease.work(database, 2)
    database.execute(*lease.step("release"))
    assert drain(database, oracle) == 2


def late_after_its_release(database: Database, oracle: Oracle) -> None:
    """P2: who has released the key has it no more, though nobody else has claimed it."""
    late = put(database, 2)
    late.work(database, 1)
    database.execute(*late.step("release"))
    all_fenced(database, late, 2)
    assert drain(database, oracle) == 2


def late_after_a_lease_that_left_nothing(database: Database, oracle: Oracle) -> None:
    """P2: neither its release nor a turn of the other kind gives its epoch to anybody again."""
    late = put(database, 1)
    database.execute(*late.step("release"))
    all_fenced(database, late, 1)
    (again,) = claim(database, applier="two")
    assert again.epoch == late.epoch + 1
    expire(database)
    assert drain(database, oracle) == 1
    all_fenced(database, again, 1)
    lease = put(database, 1)
    assert lease.epoch == again.epoch + 2
    for fenced in (late, again):
        all_fenced(database, fenced, 2)
    lease.work(database, 2)
    database.execute(*lease.step("release"))
    assert drain(database, oracle) == 2


def late_after_the_key_went_idle_without_a_turn(database: Database, oracle: Oracle) -> None:
    """P2: no turn is left of the epoch that the lease took, nor of the operator's; neither is used again."""
    put(database, 1)
    expire(database)
    drain(database, oracle)
    late = put(database, 1)
    expire(database)
    database.execute("SELECT inturn.skip('orders', 'x', 2, 'no')")
    oracle.check()
    lease = put(database, 1)
    assert lease.epoch == late.epoch + 2
    all_fenced(database, late, 3)
    lease.work(database, 3)
    database.execute(*lease.step("release"))
    assert drain(database, oracle) == 3


def append_under_a_lease(database: Database, oracle: Oracle) -> None:
    """P2: the key's last turn says drained as long as the first lease after it has done nothing."""
    append(database, "x")
    drain(database, oracle)
    lease = put(database, 1)
    append(database, "x")
    oracle.check()
    assert claim(database, applier="two") == []
    lease.work(database, 2)
    database.execute(*lease.step("release"))
    assert drain(database, oracle) == 3


def append_on_an_old_snapshot(database: Database, oracle: Oracle) -> None:
    """P4: the caller cannot see that the key went idle; a claim by lease finds what it appended."""
    append(database, "x")
    early = snapshot(database)
    drain(database, oracle)
    append(early, "x")
    early.commit()
    leases = claim(database)
    assert leases, "nobody looks at the hint"
    (lease,) = leases
    lease.work(database, 2)
    database.execute(*lease.step("release"))
    assert drain(database, oracle) == 2


def append_after_a_release(database: Database, oracle: Oracle) -> None:
    """P4: the lease's own turn says that the key went idle."""
    for seq in (1, 2):
        lease = put(database, 1)
        lease.work(database, seq)
        database.execute(*lease.step("release"))
        assert oracle.check_drained() == seq
    append(database, "x")
    assert drain(database, oracle) == 3


def late_after_an_amend(database: Database, oracle: Oracle) -> None:
    """What an operator has amended was read before by whoever let the lease run out."""
    late = put(database, 2)
    expire(database)
    database.execute("SELECT inturn.amend('orders', 'x', 1, 'wrong', name => 'update')")
    all_fenced(database, late, 1)
    database.execute("CALL inturn.apply()")
    assert database.execute("SELECT seq, name FROM app.witness") == [(1, "update"), (2, "insert")]


def advance_out_of_turn(database: Database, oracle: Oracle) -> None:
    """P3: only the next command can be reported."""
    lease = put(database, 3)
    lease.work(database, 1)
    session = database.session()
    for seq in (0, 3, 4, None):
        refused(session, OUT_OF_TURN, lease.advance(seq))
        refused(session, OUT_OF_TURN, lease.fail(seq))
    lease.work(database, 2)
    lease.work(database, 3)
    for statement in (lease.advance(4), lease.fail(4)):
        refused(session, OUT_OF_TURN, statement)
    database.execute(*lease.step("release"))
    assert drain(database, oracle) == 3


def repeated_advance_after_a_failure(database: Database, oracle: Oracle) -> None:
    """A client that reports its last success again does not take back the failures of the next command."""
    lease = put(database, 2)
    lease.work(database, 1)
    database.execute(*lease.fail(2))
    until(lambda: (leases := claim(database)) and leases, "claimed again")
    attempts = "SELECT attempts FROM inturn.key_cursor"
    assert database.value(attempts) == 1
    again = Lease("x", lease.epoch + 1, (2,))
    database.execute(*again.advance(1))
    assert database.value(attempts) == 1, "failed for the first time again"
    again.work(database, 2)
    database.execute(*again.step("release"))
    assert drain(database, oracle) == 2


def fail_after_an_advance(database: Database, oracle: Oracle) -> None:
    """What was recorded before the failure stays in the turn."""
    lease = put(database, 3)
    lease.work(database, 1)
    lease.work(database, 2)
    database.execute(*lease.fail(3))
    assert database.execute("SELECT from_seq, to_seq, outcome FROM inturn.turn") == [(1, 2, "retrying")]
    assert drain(database, oracle) == 3


def turn_after_a_lease_that_ran_out(database: Database, oracle: Oracle) -> None:
    """An applier of the other kind takes over, and the lease is over for good."""
    late = put(database, 1)
    late.work(database, 1)
    expire(database)
    session = database.session()
    ((epoch,),) = session.execute("SELECT epoch FROM inturn.claim('orders') WHERE lost")
    session.execute("SELECT inturn.finish('orders', '{x}', ARRAY[%s], '{2}', '{1}', 'sql')", [epoch])
    session.commit()
    assert drain(database, oracle) == 1
    lease = put(database, 1)
    assert database.value("SELECT attempts FROM inturn.key_cursor") == 0, "counted as a failed attempt"
    all_fenced(database, late, 2)
    lease.work(database, 2)
    database.execute(*lease.step("release"))
    assert drain(database, oracle) == 2


def pause_for_a_moment_under_a_lease(database: Database, oracle: Oracle) -> None:
    """P2: the pause is over before the lease, and the key is still its holder's."""
    lease = put(database, 2)
    database.execute("SELECT inturn.pause('orders', 'x', NULL, clock_timestamp() + '200 ms')")
    oracle.check()
    until(lambda: database.value("SELECT paused_until < clock_timestamp() FROM inturn.key_cursor"), "resumed")
    assert claim(database, applier="two") == []
    assert lease.work(database, 1) is not None, "let go although the pause was over"
    lease.work(database, 2)
    database.execute(*lease.step("release"))
    assert drain(database, oracle) == 2


def renew_under_a_pause(database: Database, oracle: Oracle) -> None:
    """P2: a lease that is renewed beyond the pause keeps the key."""
    lease = put(database, 2)
    database.execute("SELECT inturn.pause('orders', 'x', NULL, clock_timestamp() + '1 hour')")
    database.execute(*lease.step("renew", "2 hours"))
    oracle.check()
    assert lease.work(database, 1) is None
    database.execute("SELECT inturn.resume('orders', 'x')")
    assert drain(database, oracle) == 2


def resume_under_a_lease(database: Database, oracle: Oracle) -> None:
    """P2: paused and resumed while the lease runs, the key is nobody else's."""
    lease = put(database, 2)
    database.execute("SELECT inturn.pause('orders', 'x')")
    oracle.check()
    database.execute("SELECT inturn.resume('orders', 'x')")
    oracle.check()
    assert claim(database, applier="two") == []
    assert lease.work(database, 1) is not None
    lease.work(database, 2)
    database.execute(*lease.step("release"))
    assert drain(database, oracle) == 2


def resume_under_a_lease_that_is_done(database: Database, oracle: Oracle) -> None:
    """Everything is recorded and the key not released yet: an append beside that wakes nobody else."""
    lease = put(database, 1)
    lease.work(database, 1)
    database.execute("SELECT inturn.pause('orders', 'x'), inturn.resume('orders', 'x')")
    append(database, "x")
    oracle.check()
    assert claim(database, applier="two") == []
    lease.work(database, 2)
    database.execute(*lease.step("release"))
    assert drain(database, oracle) == 2


def advance_beside_a_waiting_operator(database: Database, oracle: Oracle) -> None:
    """P6: an operator who waits for the end of a lease does not keep its holder from going on."""
    lease = put(database, 2)
    operator, applier = database.session(), database.session()
    skipping = operator.begin("SELECT inturn.skip('orders', 'x', 2, 'no')")
    asleep = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep')"
    until(lambda: database.value(asleep, [operator.pid]), "the operator to wait")
    unblocked(database, applier, *lease.advance(1))
    applier.rollback()
    lease.work(database, 1)
    database.execute(*lease.step("release"))
    skipping.result()
    operator.commit()
    assert drain(database, oracle) == 2
