"""Every session of the package sets what it relies on, whatever the role or the database has as defaults."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import click
import psycopg
import pytest
from click.testing import CliRunner
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support.database import Database, until
from support.roles import APPLIER
from support.terminal import commands_of

from inturn.applier import Applier, Command, Fleet
from inturn.applier.inside import session
from inturn.applier.inside.session import session_of
from inturn.cli.main import cli
from inturn.cli.terminal.key_text import KeyParam
from inturn.schema import connection as connections

_HOSTILE = {
    "one": {
        "default_transaction_isolation": "serializable",
        "DateStyle": "German",
        "IntervalStyle": "sql_standard",
        "standard_conforming_strings": "off",
        "array_nulls": "off",
        "quote_all_identifiers": "on",
    },
    "other": {
        "default_transaction_isolation": "repeatable read",
        "DateStyle": "SQL, DMY",
        "IntervalStyle": "iso_8601",
        "TimeZone": "Asia/Kathmandu",
        "extra_float_digits": "-3",
        "bytea_output": "escape",
    },
}

_WHY = ("--reason", "a test")
#: Every command of the command line that works on a database, in an order in which each has something to do.
_COMMANDS: list[tuple[str, ...]] = [
    ("topic", "create", "inside", "--backoff-base", "90m", "--backoff-cap", "2h"),
    ("topic", "create", "inside", "--backoff-base", "90m", "--backoff-cap", "2h"),
    ("topic", "create", "outside", "--lease", "20s"),
    ("topic", "create", "given", "--numbering", "given", "--gap-timeout", "1h"),
    ("topic", "set", "inside", "--max-attempts", "1"),
    ("append", "inside", "x", "insert", '{"a": [1, null]}'),
    ("append", "inside", "x", "fail"),
    *[("append", "inside", "x", "later")] * 6,
    ("append", "outside", "x", "insert"),
    ("append", "given", "x", "insert", "--seq", "2"),
    ("pause", "x", "--topic", "outside", *_WHY),
    ("pause", "x", "--topic", "given", "--until", "30m", *_WHY),
    ("keys", "--paused"),
    ("resume", "x", "--topic", "given", *_WHY),
    ("pause", "--topic", "outside", *_WHY),
    ("resume", "--topic", "outside", *_WHY),
    ("resume", "x", "--topic", "outside", *_WHY),
    ("amend", "x", "3", "--topic", "inside", "--payload", '{"b": 1}', *_WHY),
    ("fill-gap", "x", "--topic", "given", "--seq", "1", *_WHY),
    ("skip", "x", "--topic", "inside", "--seq", "2", *_WHY),
    ("replay", "x", "1", "--topic", "inside", *_WHY),
    ("cancel-rest", "x", "--topic", "inside", *_WHY),
    ("topic", "list"),
    ("topic", "list", "--json"),
    ("topic", "show", "inside"),
    ("topic", "merge", "given", "a", "b", "nothing", *_WHY),
    ("topic", "merge", "given", "a", "b", "nothing", "--dry-run"),
    ("topic", "merge", "given"),
    ("topic", "grant", "given", "--applier", APPLIER, *_WHY),
    ("topic", "revoke", "given", "--applier", APPLIER, *_WHY),
    ("wait", "x", "1", "--topic", "inside"),
    ("prune", "--older-than", "0s"),
    ("doctor",),
    ("metrics", "--keys", "3"),
    *[(command, *more) for command in ("keys", "status") for more in ((), ("--json",))],
    *[
        (command, "x", "--topic", "inside", *more)
        for command in ("show", "why")
        for more in ((), ("--json",))
    ],
    ("keys", "--older-than", "1h"),
    ("keys", "--errors"),
    ("status", "--check"),
    ("verify",),
]
#: What the tests here run themselves, and what works on no database but its own.
_APART = {
    *("upgrade", "downgrade", "retry", "apply"),
    *("embedded start", "embedded status", "embedded stop", "completion", "demo"),
}


def test_every_command_of_the_command_line_is_tried() -> None:
    tried = {" ".join(command[: 2 if command[0] == "topic" else 1]) for command in _COMMANDS}
    assert sorted([*tried, *_APART]) == sorted(commands_of(cli))


@pytest.fixture(params=["database", "role"])
def hostile(request: pytest.FixtureRequest, empty_database: Database, settings: str) -> Iterator[str]:
    """The connection string of the database's owner, with hostile defaults of the role or the database."""
    name = f"{empty_database.name}_hostile"
    empty_database.execute(f"CREATE ROLE {name} LOGIN CREATEROLE")
    what = f"ROLE {name}" if request.param == "role" else f"DATABASE {empty_database.name}"
    for setting, value in _HOSTILE[settings].items():
        empty_database.execute(f"ALTER {what} SET {setting} = '{value}'")
    empty_database.execute(f"ALTER DATABASE {empty_database.name} OWNER TO {name}")
    yield make_conninfo(empty_database.dsn, user=name)
    empty_database.close()
    with empty_database.server.connect() as admin:
        admin.execute(f"DROP DATABASE {empty_database.name} WITH (FORCE)")
        admin.execute(f"DROP ROLE {name}")


def _inturn(dsn: str, *args: str) -> str:
    result = CliRunner().invoke(cli, ["--dsn", dsn, *args], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.output


def _apply(dsn: str, applier: Applier | None, topic: str) -> int:
    fleet = Fleet(dsn, applier, topics=[topic], drain=True)
    fleet.start()
    assert fleet.wait(60)
    outcome = fleet.end(0)
    assert outcome.error is None
    return outcome.commands


def _applier() -> Applier:
    applier = Applier()

    @applier.handler("inside")
    def inside(connection: psycopg.Connection[Any], command: Command) -> None:
        if command.name == "fail":
            raise ValueError("refused")

    @applier.handler("outside", "insert", outside=True)
    async def insert(command: Command) -> None:
        await asyncio.sleep(0)

    @applier.handler("outside", outside=True)
    def other(command: Command) -> None: ...

    return applier


@pytest.mark.each_value
@pytest.mark.parametrize("hostile", ["database", "role"], indirect=True)
@pytest.mark.parametrize("settings", _HOSTILE)
def test_every_command_and_worker_works_whatever_the_defaults_are(
    empty_database: Database, hostile: str
) -> None:
    _inturn(hostile, "upgrade")
    _inturn(hostile, "upgrade")
    for number, command in enumerate(_COMMANDS):
        if command[0] == "skip":
            # As far as the failing command: the key is held, with a time in its row.
            assert _apply(hostile, _applier(), "inside") == 1
            _inturn(hostile, "retry", "x", "--topic", "inside", "--dry-run")
        try:
            _inturn(hostile, *command)
        except Exception as error:
            raise AssertionError(f"command {number}: {command}") from error
    assert _apply(hostile, _applier(), "outside") == 1
    owner = psycopg.connect(hostile, autocommit=True)
    owner.execute("""
        CREATE FUNCTION public.f(command inturn.command) RETURNS void LANGUAGE plpgsql AS 'BEGIN END';
        SELECT inturn.create_topic('sql', 'sql:public.f');
        SELECT inturn.append('sql', 'x', 'insert'), inturn.append('inside', 'x', 'fail')""")
    assert _apply(hostile, _applier(), "inside") == 0
    assert _apply(hostile, None, "sql") == 1
    empty_database.execute("SELECT inturn.append('sql', 'x', 'insert')")
    assert owner.execute("CALL inturn.apply()").fetchall() == [(1, 0)]
    _inturn(hostile, "verify")
    _inturn(hostile, "keys", "--held")
    _inturn(hostile, "retry", "--all", "--yes", *_WHY)
    context = click.Context(cli)
    context.params = {"dsn": hostile}
    assert KeyParam()._ask(context, "") == ["x"]
    owner.execute("DROP FUNCTION public.f")
    owner.close()
    _inturn(hostile, "downgrade", "--to", "base", "--force")


@pytest.mark.parametrize("settings", ["one"])
def test_a_daemon_listens_and_applies_whatever_the_defaults_are(
    empty_database: Database, hostile: str
) -> None:
    _inturn(hostile, "upgrade")
    empty_database.execute("SELECT inturn.create_topic('inside'), inturn.create_topic('outside')")
    fleet = Fleet(hostile, _applier())
    fleet.start()
    try:
        listening = (
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE query LIKE 'LISTEN %' AND datname = current_database()"
        )
        until(lambda: empty_database.value(listening), "the listener")
        for topic in ("inside", "outside"):
            empty_database.execute("SELECT inturn.append(%s, 'x', 'insert')", [topic])
        until(lambda: fleet.totals.commands == 2, "both")
    finally:
        assert fleet.end(10).error is None


@pytest.mark.parametrize("settings", ["one"])
def test_what_a_session_has(hostile: str) -> None:
    pinned = {
        "default_transaction_isolation": "read committed",
        "DateStyle": "ISO, DMY",  # the order of a date's parts stays
        "IntervalStyle": "postgres",
        "client_encoding": "UTF8",
        "standard_conforming_strings": "on",
        "array_nulls": "on",
        "quote_all_identifiers": "off",
        "application_name": "inturn",
    }
    query = "SELECT name, setting FROM pg_settings WHERE name = ANY (%s)"
    for autocommit in (True, False):
        with connections.connect(hostile, autocommit=autocommit) as connection:
            assert connection.autocommit is autocommit
            assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
            assert dict(connection.execute(query, [list(pinned)]).fetchall()) == pinned

    async def ask() -> dict[str, str]:
        async with await connections.connect_async(hostile, application_name="inturn apply") as connection:
            return dict(await (await connection.execute(query, [list(pinned)])).fetchall())

    assert asyncio.run(ask()) == {**pinned, "application_name": "inturn apply"}


def test_behind_a_pooler_a_session_gets_no_setting_that_others_would_find(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tells its clients another backend than the one that they have."""
    database.execute(f"ALTER DATABASE {database.name} SET default_transaction_isolation = 'serializable'")
    database.execute(f"ALTER DATABASE {database.name} SET IntervalStyle = 'sql_standard'")
    monkeypatch.setattr(psycopg.ConnectionInfo, "backend_pid", 1)
    with connections.connect(database.dsn) as connection:
        shown = [
            connection.execute(f"SHOW {name}").fetchone()
            for name in ("default_transaction_isolation", "IntervalStyle")
        ]
        assert shown == [("serializable",), ("postgres",)]
        with connection.transaction():
            assert connection.execute("SHOW transaction_isolation").fetchone() == ("read committed",)


def test_a_dead_connection_is_noticed_by_default_and_what_is_given_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    def kept(dsn: str) -> dict[str, Any]:
        return {
            k: v for k, v in conninfo_to_dict(connections.complete(dsn)).items() if k in connections.KEEPALIVE
        }

    defaults = {name: str(value) for name, value in connections.KEEPALIVE.items()}
    assert kept("host=h") == kept("postgresql://h/db") == defaults
    assert kept("host=h keepalives_idle=300") == {"keepalives_idle": "300"}
    assert kept("host=h tcp_user_timeout=0") == {"tcp_user_timeout": "0"}
    assert kept("host=h keepalives=0") == {}
    (tmp_path / "services").write_text("[mine]\nhost=h\nkeepalives_idle=77\n[other]\nhost=h\n")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    assert kept("service=mine") == {}, "the service file may give them"
    monkeypatch.setenv("PGSERVICE", "mine")
    assert kept("") == {}
    monkeypatch.setenv("PGSERVICE", "other")
    assert kept("") == defaults


def test_the_server_looks_for_the_client_of_a_session(database: Database) -> None:
    """Where that is gone, its keys are free before two hours have passed, or its statement has ended."""
    probes = """
        SELECT name, setting FROM pg_settings
        WHERE name LIKE 'tcp_keepalives%' OR name = 'client_connection_check_interval' ORDER BY name"""
    expected = [
        ("client_connection_check_interval", "5000"),
        ("tcp_keepalives_count", "3"),
        ("tcp_keepalives_idle", "10"),
        ("tcp_keepalives_interval", "5"),
    ]
    with connections.connect(make_conninfo(database.dsn, host="127.0.0.1"), for_handlers=True) as connection:
        assert connection.execute(probes).fetchall() == expected
        session = session_of(connection)
        session.changed = True
        with connection.transaction():
            connection.execute("RESET ALL")
            session.put_back(connection)
        assert connection.execute(probes).fetchall() == expected
        connection.execute("SELECT inturn._reset_session(%s, %s)", session.pinned)  # after a SQL target
        assert connection.execute(probes).fetchall() == expected


def test_the_kernel_probes_a_connection_that_is_idle(database: Database) -> None:
    import socket

    dsn = make_conninfo(database.dsn, host="127.0.0.1")
    with connections.connect(dsn) as connection:
        opened = socket.socket(fileno=connection.fileno())
        try:
            tcp = socket.IPPROTO_TCP
            assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            idle, interval, count = (
                opened.getsockopt(tcp, name)
                for name in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
            assert idle + interval * count <= 30
            assert opened.getsockopt(tcp, socket.TCP_USER_TIMEOUT) <= 30_000
        finally:
            opened.detach()


def test_a_worker_forgets_a_connection_that_it_gave_up_with_what_it_kept_beside_it(
    database: Database,
) -> None:
    connection = connections.connect(database.dsn, for_handlers=True)
    assert session_of(connection) is session_of(connection)
    connection.close()
    forgotten = weakref.ref(connection)
    del connection
    gc.collect()
    assert forgotten() is None


def test_what_a_handler_runs_again_and_again_is_looked_through_once(database: Database) -> None:
    """Looking for what it leaves behind takes as long as a third of a short command."""
    session._look_through.cache_clear()
    with database.connect(user=APPLIER) as connection:
        kept = session_of(connection)
        for number in range(3):
            connection.execute("SELECT %s::integer", [number])
        assert session._look_through.cache_info()[:2] == (2, 1)  # hits, misses
        for _ in range(2):
            connection.execute(f"SELECT 1 -- {'x' * 10_000}")
        assert session._look_through.cache_info().currsize == 1, "long texts are kept"
        for _ in range(2):
            kept.changed = False
            connection.execute("SELECT set_config('work_mem', '1MB', false)")
            assert kept.changed
        for _ in range(2):
            kept.worn = False
            connection.execute("CREATE TEMP TABLE IF NOT EXISTS t ()")
            assert kept.worn


class _Equal:
    """A row factory that says it is equal to any other."""

    def __eq__(self, _: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]  # nothing needs one

    def __call__(self, _: Any) -> Any:
        raise AssertionError("it meets the next command")


def test_what_a_handler_has_set_on_the_connection_is_put_back_whatever_it_is_equal_to(
    database: Database,
) -> None:
    with database.connect(user=APPLIER) as connection:
        kept, made = session_of(connection), connection.row_factory
        connection.row_factory = _Equal()
        kept.restore(connection)
        assert connection.row_factory is made
