"""P7 of a forgotten key that comes back: its receiver remembers it, takes what is new, and no more."""

from __future__ import annotations

import pytest
from support.database import Database
from support.lease_scenes import Lease, expire

from inturn.schema.receiver import upgrade_receiver


@pytest.fixture
def receiver(empty_database: Database) -> Database:
    """B's database, which knows for ever what it has accepted."""
    upgrade_receiver(empty_database.dsn)
    return empty_database


def claim(sender: Database) -> Lease:
    rows = sender.execute("SELECT key, epoch, seq FROM inturn.claim('{calls}', 1, NULL, NULL) ORDER BY seq")
    return Lease(rows[0][0], rows[0][1], tuple(seq for _, _, seq in rows), "calls")


def accepted(receiver: Database, lease: Lease, seq: int) -> bool:
    answer: bool = receiver.value("SELECT inturn.accept('calls', %s, %s, %s)", [lease.key, seq, lease.epoch])
    return answer


def come_back(sender: Database, key: str = "a") -> Lease:
    """Append to the key, and claim it."""
    sender.execute("SELECT inturn.append('calls', %s, 'set')", [key])
    return claim(sender)


def forget(sender: Database, lease: Lease) -> None:
    """Record a command as applied, and forget its key."""
    sender.execute(*lease.advance(lease.seqs[0]))
    sender.execute(*lease.step("release"))
    assert sender.execute("CALL inturn.prune('calls')")[0][2] == 1


@pytest.mark.parametrize("numbering", ["assigned", "arrival"])
def test_p7_a_receiver_takes_a_forgotten_key_s_new_commands_and_refuses_late_ones(
    database: Database, receiver: Database, numbering: str
) -> None:
    database.execute("SELECT inturn.create_topic('calls', numbering => %s)", [numbering])
    database.execute("UPDATE inturn.topic SET retain = '0', forget_idle_after = '0'")
    database.execute("SELECT inturn.append('calls', 'a', 'set') FROM generate_series(1, 3)")
    before = claim(database)
    assert before.seqs == (1, 2, 3)
    for seq in (1, 2):
        assert accepted(receiver, before, seq)
        database.execute(*before.advance(seq))
    # The request for 3 is on its way still when an operator skips it, and the key is forgotten.
    expire(database)
    database.execute("SELECT inturn.skip('calls', 'a', 3, 'it hangs')")
    assert database.execute("CALL inturn.prune('calls')")[0][2] == 1
    assert database.value("SELECT count(*) FROM inturn.key_sequence") == 0

    after = come_back(database)
    assert accepted(receiver, after, after.seqs[0]), "the new one is taken"
    assert not accepted(receiver, before, 3), "the late one of before is not"
    assert not accepted(receiver, after, after.seqs[0]), "a repeat"
    forget(database, after)
    # What holds for this by the number and by the turn alike: without either B takes what is new for late.
    for lost in ("seq = 0", "epoch = 0"):
        kept = database.execute("SELECT seq, epoch FROM inturn.forgotten")[0]
        database.execute(f"UPDATE inturn.forgotten SET {lost}")
        again = come_back(database)
        assert not accepted(receiver, again, again.seqs[0]), lost
        forget(database, again)
        database.execute("UPDATE inturn.forgotten SET seq = %s, epoch = %s", [*kept])
        again = come_back(database)
        assert accepted(receiver, again, again.seqs[0])
        forget(database, again)
