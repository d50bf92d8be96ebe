"""One of two databases is taken back to an earlier time: the one that sends, or the one that receives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.database import Database, until
from support.moved import CopiedServer, check_verified, database_on
from support.own_server import own_database
from support.recovery_page import snippet, tell_sender
from support.roles import APPLIER, OWNER
from support.server import Server

from inturn.schema.receiver import upgrade_receiver

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_ARCHIVED = "archive_mode = on\narchive_command = 'mkdir -p ../archive && cp %p ../archive/%f'"
_APPEND = "SELECT inturn.append('calls', %s, %s)"


@pytest.fixture
def archived(server: Server) -> Iterator[Database]:
    """A database on a server of its own whose WAL is archived: it can be taken back."""
    with own_database(server, extra_settings=_ARCHIVED) as database:
        yield database


def open_sender(database: Database, numbering: str = "assigned") -> Database:
    """Make a database A's."""
    database.execute("SELECT inturn.create_topic('calls', 'python', numbering => %s)", [numbering])
    return database


def open_receiver(database: Database) -> Database:
    """Make a database B's: the guard, and what took effect."""
    upgrade_receiver(database.dsn)
    database.execute("CREATE TABLE effects (id bigserial, key text, seq bigint, name text)")
    return database


class Backup:
    """A base backup of an archived server, and a later moment to which it can be taken back."""

    def __init__(self, database: Database) -> None:
        self._database = database
        archive = database.server.directory / "archive"
        self._copy = CopiedServer(
            database.server,
            "recovery",
            extra_settings=(
                f"archive_mode = off\nrestore_command = 'cp {archive}/%f %p'\n"
                "recovery_target_name = 'noon'\nrecovery_target_action = 'promote'"
            ),
        )

    def name_moment(self) -> None:
        """Name this moment as the one to be taken back to."""
        self._database.administer("SELECT pg_create_restore_point('noon')")

    @contextmanager
    def taken_back(self) -> Iterator[Database]:
        """Give the database as it was at that moment."""
        self._wait_archived()
        self._copy.start()
        back = database_on(self._copy, self._database.name)
        try:
            until(lambda: not back.value("SELECT pg_is_in_recovery()"), "recovered", patience=120)
            yield back
        finally:
            back.close()

    def remove(self) -> None:
        self._copy.remove()

    def _wait_archived(self) -> None:
        self._database.administer("SELECT pg_switch_wal()")
        segment = self._database.value("SELECT pg_walfile_name(pg_current_wal_lsn() - 1)")
        until(
            lambda: self._database.value("SELECT last_archived_wal >= %s FROM pg_stat_archiver", [segment]),
            "everything archived",
            patience=120,
        )


@pytest.fixture
def backups() -> Iterator[list[Backup]]:
    """The backups that the test makes, removed in the end."""
    made: list[Backup] = []
    yield made
    for backup in made:
        backup.remove()


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
    archived: Database, empty_database: Database, backups: list[Backup], tmp_path: Path
) -> None:
    sender, receiver = open_sender(archived), open_receiver(empty_database)
    # B knows others' topics too, and one whose callers give the numbers.
    sender.execute("SELECT inturn.create_topic('given', 'python', numbering => 'given')")
    for topic in ("elsewhere", "given"):
        receiver.execute("SELECT inturn.accept(%s, 'a', 7, 7)", [topic])
    sender.execute(_APPEND, ["a", "one"])
    deliver(sender, receiver)
    backups.append(Backup(sender))
    backups[0].name_moment()
    # Lost by A, and B has them: two of `a`, and one of a key that A will not know.
    for key, name in (("a", "lost"), ("a", "lost too"), ("b", "lost")):
        sender.execute(_APPEND, [key, name])
    deliver(sender, receiver)
    with backups[0].taken_back() as back:
        check_verified(back)
        assert back.execute("SELECT key, seq FROM inturn.command_log") == [("a", 1)]
        # As the how-to says: no caller and no applier yet.
        tell_sender(back, receiver, tmp_path)
        back.execute(snippet("numbers that are taken"))
        receiver.execute(snippet("a receiver takes turns anew"))
        for key in ("a", "b", "c"):
            back.execute(_APPEND, [key, "new"])
        deliver(back, receiver)
        effects = receiver.execute("SELECT key, seq, name FROM effects ORDER BY key, seq")
        assert effects == [
            *[("a", 1, "one"), ("a", 2, "lost"), ("a", 3, "lost too"), ("a", 4, "new")],
            *[("b", 1, "lost"), ("b", 2, "new"), ("c", 1, "new")],
        ]
        kept = receiver.execute("SELECT epoch FROM inturn.accepted WHERE topic = 'elsewhere'")
        assert kept == [(7,)], "another sender's turns are counted as before"
        check_verified(back)


def test_the_receiver_taken_back_is_given_again_what_it_lost(
    archived: Database, database: Database, backups: list[Backup], tmp_path: Path
) -> None:
    sender, receiver = open_sender(database), open_receiver(archived)
    sender.execute(_APPEND, ["a", "one"])
    sender.execute(_APPEND, ["b", "one"])
    deliver(sender, receiver)
    backups.append(Backup(receiver))
    backups[0].name_moment()
    sender.execute(_APPEND, ["a", "two"])
    deliver(sender, receiver)
    # An operator had one done twice: it is to come once more, not to keep all the others away.
    sender.execute("SELECT inturn.replay('calls', 'a', 2, 'once more')")
    deliver(sender, receiver)
    with backups[0].taken_back() as back:
        effects = "SELECT key, name FROM effects ORDER BY id"
        assert back.execute(effects) == [("a", "one"), ("b", "one")]
        tell_sender(sender, back, tmp_path)
        sender.as_login(OWNER).execute(snippet("what the receiver lost"))
        deliver(sender, back)
        assert back.execute(effects) == [("a", "one"), ("b", "one"), ("a", "two")]
        # Both go on.
        for key in ("a", "b"):
            sender.execute(_APPEND, [key, "three"])
        deliver(sender, back)
        assert back.execute(effects)[3:] == [("a", "three"), ("b", "three")]
    check_verified(sender)


def test_what_the_sender_has_forgotten_it_gives_the_receiver_no_command_for(
    database: Database, empty_database: Database, tmp_path: Path
) -> None:
    """A key that both knew once is not lost: `lost` would get a number that the receiver takes."""
    sender, receiver = open_sender(database), open_receiver(empty_database)
    for key in ("gone", "gone", "other", "kept"):
        sender.execute(_APPEND, [key, "old"])
    deliver(sender, receiver)
    sender.execute("UPDATE inturn.topic SET retain = '0', forget_idle_after = '0'")
    sender.execute("SELECT inturn.pause('calls', 'kept', 'it stays')")
    assert sender.execute("CALL inturn.prune('calls')")[0][2] == 2
    # As if A had lost one of a key that it knows, and all of one that it does not know.
    receiver.execute("UPDATE inturn.accepted SET seq = 4, epoch = 9 WHERE key = 'kept'")
    receiver.execute("SELECT inturn.accept('calls', 'new', 5, 9)")
    tell_sender(sender, receiver, tmp_path)
    sender.execute(snippet("numbers that are taken"))
    lost = "SELECT key, array_agg(seq ORDER BY seq) FROM inturn.command_log GROUP BY key ORDER BY key"
    assert dict(sender.execute(lost))["new"][-1] == 5
    assert "gone" not in dict(sender.execute(lost))
    receiver.execute(snippet("a receiver takes turns anew"))
    sender.execute("SELECT inturn.resume('calls', 'kept', 'done')")
    for key in ("gone", "kept", "new", "other"):
        sender.execute(_APPEND, [key, "new"])
    deliver(sender, receiver)
    taken = receiver.execute("SELECT key, seq, name FROM effects WHERE name <> 'old' ORDER BY key")
    assert taken == [("gone", 3, "new"), ("kept", 5, "new"), ("new", 6, "new"), ("other", 3, "new")]
    check_verified(sender)
