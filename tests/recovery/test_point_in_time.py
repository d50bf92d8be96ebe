"""One of two databases is taken back to an earlier time: the one that sends, or the one that receives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.database import Database, until
from support.moved import CopiedServer, check_verified, database_on
from support.own_server import own_database
from support.roles import APPLIER, OPERATOR
from support.server import Server

from inturn.schema.receiver import upgrade_receiver

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "back-up-and-recover.md"


def snippet(name: str) -> str:
    """Return the SQL of the how-to after the comment with this name."""
    text = HOW_TO.read_text("utf-8")
    return text.split(f"<!-- {name} -->\n```sql\n", 1)[1].split("```", 1)[0]


@pytest.fixture
def sender(server: Server) -> Iterator[Database]:
    """A's database, on a server of its own whose WAL is archived."""
    settings = "archive_mode = on\narchive_command = 'mkdir -p ../archive && cp %p ../archive/%f'"
    with own_database(server, extra_settings=settings) as database:
        database.execute("SELECT inturn.create_topic('calls', 'python')")
        yield database


@pytest.fixture
def receiver(empty_database: Database) -> Database:
    """B's database, with the guard and what took effect."""
    upgrade_receiver(empty_database.dsn)
    empty_database.execute("CREATE TABLE effects (id bigserial, key text, seq bigint, name text)")
    return empty_database


def taken_back(sender: Database, to: str) -> CopiedServer:
    """Return a server that was recovered from the base backup and the archive to a restore point."""
    archive = sender.server.directory / "archive"
    return CopiedServer(
        sender.server,
        "recovery",
        extra_settings=(
            f"archive_mode = off\nrestore_command = 'cp {archive}/%f %p'\n"
            f"recovery_target_name = '{to}'\nrecovery_target_action = 'promote'"
        ),
    )


def deliver(sender: Database, receiver: Database) -> None:
    """Do as an applier does that calls B: claim, have B accept and take effect, report."""
    claim = (
        "SELECT key, applied_seq, epoch, seq, name FROM inturn.claim_commands('calls', '-infinity', 50)"
        " WHERE seq IS NOT NULL ORDER BY key, seq"
    )
    with sender.connect(autocommit=False, user=APPLIER) as connection:
        done: dict[str, tuple[int, int, int]] = {}
        for key, applied, epoch, seq, name in connection.execute(claim).fetchall():
            receiver.execute(
                "WITH a AS (SELECT inturn.accept('calls', %s, %s, %s) AS new)"
                " INSERT INTO effects (key, seq, name) SELECT %s, %s, %s FROM a WHERE new",
                [key, seq, epoch, key, seq, name],
            )
            first = done[key][1] if key in done else applied + 1
            done[key] = (epoch, first, seq)
        if done:
            connection.execute(
                "SELECT inturn.finish('calls', %s::text[], %s::bigint[], %s::bigint[], %s::bigint[], 'a')",
                [[*done], *map(list, zip(*done.values(), strict=True))],
            )


def test_the_sender_taken_back_goes_on_above_what_the_receiver_has(
    sender: Database, receiver: Database
) -> None:
    append = "SELECT inturn.append('calls', %s, %s)"
    sender.execute(append, ["a", "one"])
    deliver(sender, receiver)
    recovered = taken_back(sender, "noon")
    try:
        sender.administer("SELECT pg_create_restore_point('noon')")
        # Lost by A, and B has them: two of `a`, and one of a key that A will not know.
        for key, name in (("a", "lost"), ("a", "lost too"), ("b", "lost")):
            sender.execute(append, [key, name])
        deliver(sender, receiver)
        sender.administer("SELECT pg_switch_wal()")
        segment = sender.value("SELECT pg_walfile_name(pg_current_wal_lsn() - 1)")
        until(
            lambda: sender.value("SELECT last_archived_wal >= %s FROM pg_stat_archiver", [segment]),
            "everything archived",
            patience=120,
        )
        recovered.start()
        back = database_on(recovered, sender.name)
        until(lambda: not back.value("SELECT pg_is_in_recovery()"), "recovered", patience=120)
        check_verified(back)
        assert back.execute("SELECT key, seq FROM inturn.command_log") == [("a", 1)]
        # As the how-to says: no caller and no applier yet.
        ahead = receiver.execute(snippet("what the receiver has"))
        back.execute("CREATE TEMPORARY TABLE received (topic text, key text, seq bigint)")
        for row in ahead:
            back.execute("INSERT INTO received VALUES (%s, %s, %s)", row)
        back.execute(snippet("numbers that are taken"))
        receiver.execute(snippet("a receiver takes turns anew"))
        for key in ("a", "b", "c"):
            back.execute(append, [key, "new"])
        deliver(back, receiver)
        effects = receiver.execute("SELECT key, seq, name FROM effects ORDER BY key, seq")
        assert effects == [
            *[("a", 1, "one"), ("a", 2, "lost"), ("a", 3, "lost too"), ("a", 4, "new")],
            *[("b", 1, "lost"), ("b", 2, "new"), ("c", 1, "new")],
        ]
        check_verified(back)
        back.close()
    finally:
        recovered.remove()


def test_the_receiver_taken_back_is_given_again_what_it_lost(sender: Database, receiver: Database) -> None:
    append = "SELECT inturn.append('calls', 'a', %s)"
    sender.execute(append, ["one"])
    deliver(sender, receiver)
    dumped = receiver.execute("SELECT topic, key, seq, epoch FROM inturn.accepted")
    sender.execute(append, ["two"])
    deliver(sender, receiver)
    # B as it was before.
    receiver.execute("DELETE FROM effects WHERE seq > 1; DELETE FROM inturn.accepted")
    for row in dumped:
        receiver.execute("INSERT INTO inturn.accepted VALUES (%s, %s, %s, %s)", row)
    operator = sender.session(autocommit=True, user=OPERATOR)
    operator.execute("CREATE TEMPORARY TABLE received (topic text, key text, seq bigint)")
    for row in receiver.execute(snippet("what the receiver has")):
        operator.execute("INSERT INTO received VALUES (%s, %s, %s)", row)
    operator.execute(snippet("what the receiver lost"))
    deliver(sender, receiver)
    assert receiver.execute("SELECT name FROM effects ORDER BY id") == [("one",), ("two",)]
    check_verified(sender)
