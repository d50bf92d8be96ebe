"""Callers that prepare their transactions: a wake-up is a hint and never aborts them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import psycopg
import pytest
from support.database import Database, until
from support.own_server import own_database
from support.process import run_inturn
from support.refusal import refusal
from support.roles import APPLIER, CALLER, OPERATOR, OWNER
from support.server import Server
from support.shop import TOPIC, append, applied, at_work, open_shop

from inturn.schema import locks
from inturn.schema.errors import SchemaInUse
from inturn.schema.install import downgrade

_READ_COMMITTED, _SERIALIZABLE = "READ COMMITTED", "SERIALIZABLE"
#: Ways to append that may wake an applier: the isolation level, and the statement.
_WAYS = {
    "a new key": (_READ_COMMITTED, "SELECT inturn.append('shop', 'new', 'insert')"),
    "an idle key": (_READ_COMMITTED, "SELECT inturn.append('shop', 'idle', 'insert')"),
    "an idle key on a snapshot": (_SERIALIZABLE, "SELECT inturn.append('shop', 'idle', 'insert')"),
    "many": (_READ_COMMITTED, "SELECT inturn.append_many('shop', '{idle,new}', '{insert,insert}')"),
    "the view": (
        _READ_COMMITTED,
        "INSERT INTO inturn.outbox (topic, key, name) VALUES ('shop', 'new', 'insert')",
    ),
    "a given number": (_READ_COMMITTED, "SELECT inturn.append('given', 'new', 'insert', seq => 1)"),
}


@pytest.fixture(scope="module")
def prepares(server: Server) -> Iterator[Database]:
    """A database whose server prepares transactions, with the topics shop and given."""
    with own_database(server, extra_settings="max_prepared_transactions = 10") as database:
        open_shop(database)
        database.execute("SELECT inturn.create_topic('given', numbering => 'given')")
        yield database


@pytest.fixture
def asleep(prepares: Database) -> Database:
    """The same, with the key `idle`, and an applier that sleeps for ever."""
    prepares.execute(
        "DELETE FROM inturn.command_log; DELETE FROM inturn.key_sequence; DELETE FROM inturn.turn"
    )
    prepares.execute("DELETE FROM inturn.ticket; DELETE FROM inturn.wake_hint; DELETE FROM app.witness")
    append(prepares, "idle", "insert")
    with at_work(prepares):
        until(lambda: applied(prepares, "idle") == [1], "the first command")
        idle = "SELECT count(*) = 0 FROM inturn.ticket"
        until(lambda: prepares.value(idle), "the key idle")
    prepares.execute("DELETE FROM inturn.listener; INSERT INTO inturn.listener VALUES ('', 'infinity')")
    return prepares


def _prepare(database: Database, way: str, *settings: str) -> None:
    level, statement = _WAYS[way]
    with database.connect(user=CALLER) as caller:
        for setting in settings:
            caller.execute(setting)
        caller.execute(f"BEGIN ISOLATION LEVEL {level}")
        caller.execute(statement)
        caller.execute("PREPARE TRANSACTION 'business'")


def _commit(database: Database) -> None:
    with database.connect(user=CALLER) as caller:
        caller.execute("COMMIT PREPARED 'business'")


@pytest.mark.parametrize("way", _WAYS)
def test_with_notify_off_an_append_can_always_be_prepared(asleep: Database, way: str) -> None:
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="NOTIFY"):
        _prepare(asleep, way)
    _prepare(asleep, way, "SET inturn.notify = off")
    commands = asleep.value("SELECT count(*) FROM inturn.command_log")
    _commit(asleep)
    assert asleep.value("SELECT count(*) FROM inturn.command_log") > commands


@pytest.mark.parametrize("way", ["a new key", "an idle key", "an idle key on a snapshot"])
def test_appliers_find_what_was_prepared_without_a_wake_up(asleep: Database, way: str) -> None:
    key = "new" if way == "a new key" else "idle"
    with at_work(asleep):
        _prepare(asleep, way, "SET inturn.notify = off")
        # Whoever has looked in between has not seen it.
        before = asleep.value("SELECT clock_timestamp()")
        until(
            lambda: asleep.value("SELECT clock_timestamp() > %s + interval '1.5 s'", [before]), "some looks"
        )
        _commit(asleep)
        until(lambda: applied(asleep, key)[-1:] == [1 if key == "new" else 2], "the effect")


@pytest.mark.parametrize(
    ("value", "notifies"),
    [
        ("off", False),
        ("false", False),
        ("NO", False),
        ("0", False),
        ("on", True),
        ("", True),
        ("maybe", True),
    ],
)
def test_no_value_of_the_setting_hurts_an_append(asleep: Database, value: str, notifies: bool) -> None:
    with asleep.connect(user=APPLIER) as listener, asleep.connect(user=CALLER) as caller:
        listener.execute('LISTEN "inturn.ready"')
        caller.execute("SELECT set_config('inturn.notify', %s, false)", [value])
        caller.execute("SELECT inturn.append('shop', 'idle', 'insert')")
        # Notifications come in their order: what came before this one was heard.
        caller.execute("NOTIFY \"inturn.ready\", 'the end'")
        heard = []
        for notification in listener.notifies(timeout=60):
            heard.append(notification.payload)
            if notification.payload == "the end":
                break
        assert heard == [*([TOPIC] if notifies else []), "the end"]


def test_an_operator_who_waits_for_a_prepared_append_is_told_of_it(asleep: Database) -> None:
    """No session has it, so none is at fault and none can be ended."""
    _prepare(asleep, "an idle key", "SET inturn.notify = off")
    try:
        with asleep.connect(user=OPERATOR) as operator:
            operator.execute("SET lock_timeout = '20 ms'")
            said = refusal(operator, "SELECT inturn.pause('shop', 'idle')")
        assert said.sqlstate == "IT042"
        assert f"in hand: the prepared transaction 'business' of {CALLER}, since 2" in said.message
        assert "end it: COMMIT PREPARED" in said.hint
    finally:
        _commit(asleep)


def test_why_names_a_prepared_transaction_and_what_ends_it(asleep: Database) -> None:
    for gid in ("business", "it's 5 $"):
        name = gid.replace("'", "''")
        with asleep.connect(user=CALLER) as caller:
            caller.execute("SET inturn.notify = off; BEGIN; SELECT inturn.append('shop', 'idle', 'insert')")
            caller.execute(f"PREPARE TRANSACTION '{name}'")
            try:
                says, to_do = asleep.execute("SELECT says, to_do FROM inturn.why('shop', 'idle')")[0]
            finally:
                caller.execute(f"ROLLBACK PREPARED '{name}'")
            assert f"still open: the prepared transaction '{name}' of {CALLER}, since 2" in says
            commit, rollback = (line.partition("  # ") for line in to_do.splitlines())
            assert commit[2] == f"by the login {CALLER}, if that is to take effect"
            psql = ["psql", "$INTURN_DSN", "-c"]
            assert shlex.split(commit[0]) == [*psql, f"COMMIT PREPARED '{name}'"]
            assert shlex.split(rollback[0]) == [*psql, f"ROLLBACK PREPARED '{name}'"]
    append(asleep, "idle", "insert")
    with asleep.connect(user=OWNER) as session:
        session.execute("BEGIN; SELECT FROM inturn.ticket FOR UPDATE; PREPARE TRANSACTION 'left over'")
        try:
            code, out, _ = run_inturn(asleep.dsn, "why", "idle")
            assert code == 0
            assert "because it is locked by the prepared transaction 'left over' of" in out
            assert '  $ psql "$INTURN_DSN" -c "ROLLBACK PREPARED \'left over\'"' in out
        finally:
            session.execute("ROLLBACK PREPARED 'left over'")


def test_a_removal_that_a_prepared_append_keeps_waiting_names_it(
    asleep: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.0)
    _prepare(asleep, "an idle key", "SET inturn.notify = off")
    try:
        with pytest.raises(SchemaInUse, match="the longest by prepared transaction 'business'"):
            downgrade(asleep.dsn)
    finally:
        _commit(asleep)
