"""P5: half-open connections, where what is sent no longer arrives, are noticed in every way of applying."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import ExitStack
from typing import Any

import pytest
from support import bad_company, bad_outside, roles, rounds, shop, standing
from support.b_server import B, Post, say_ok
from support.bad_company import HEALTHY, OTHERS, innocent_and_charged
from support.database import Database, until
from support.proxy import Proxy
from support.ways import HALF_OPEN

from inturn.applier import Applier
from inturn.applier.inside.visits import CAREFUL_KEYS

#: Each is a topic of that name, and a way of applying.
WAYS = tuple(HALF_OPEN.values())
_APPLIERS = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'inturn apply'"""


class _Hands:
    """Handlers of every kind; one in each kind has its command in hand while the network is swallowed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._held: set[str] = set()
        self.go_on = threading.Event()
        self.applier = Applier()
        self.applier.handler("inside")(self._inside)
        self.applier.batch_handler("batches")(self._batch)
        self.applier.handler("plain", outside=True)(self._plain)
        self.applier.handler("coroutine", outside=True)(self._coroutine)

    def are_full(self) -> bool:
        return self._held == {"inside", "batches", "plain", "coroutine", "http"}

    def _write(self, topic: str, key: str) -> None:
        with self._database.connect(user=roles.APPLIER) as connection:
            connection.execute("INSERT INTO app.done VALUES (%s, %s) ON CONFLICT DO NOTHING", (topic, key))

    def _hold(self, topic: str, key: str) -> None:
        if key == "in hand":
            self._held.add(topic)
            assert self.go_on.wait(100)

    def _inside(self, connection: Any, command: Any) -> None:
        self._hold(command.topic, command.key)
        # Without ON CONFLICT: what was in hand took no effect.
        connection.execute("INSERT INTO app.done VALUES (%s, %s)", (command.topic, command.key))

    def _batch(self, connection: Any, commands: list[Any]) -> None:
        for command in commands:
            self._inside(connection, command)

    def _plain(self, command: Any) -> None:
        self._hold(command.topic, command.key)
        self._write(command.topic, command.key)

    async def _coroutine(self, command: Any) -> None:
        await asyncio.to_thread(self._plain, command)

    async def answer(self, post: Post, writer: asyncio.StreamWriter) -> None:
        await asyncio.to_thread(self._hold, "http", post.key)
        await asyncio.to_thread(self._write, "http", post.key)
        await say_ok(post, writer)


def _open(database: Database, port: int) -> None:
    database.execute("""
        CREATE SCHEMA app;
        CREATE TABLE app.done (topic text, key text, UNIQUE (topic, key));
        CREATE FUNCTION app.apply(command inturn.command) RETURNS void LANGUAGE sql AS
            'INSERT INTO app.done VALUES (command.topic, command.key)';
    """)
    targets = {"sql": "sql:app.apply", "http": f"http://127.0.0.1:{port}/"}
    for topic in WAYS:
        database.execute(
            "SELECT inturn.create_topic(%s, %s, lease => '10 seconds')", [topic, targets.get(topic, "python")]
        )


def _append(database: Database, *keys: str) -> None:
    for topic in WAYS:
        for key in keys:
            database.execute("SELECT inturn.append(%s, %s, 'do')", [topic, key])


def _done(database: Database, key: str) -> set[str]:
    return {topic for (topic,) in database.execute("SELECT topic FROM app.done WHERE key = %s", [key])}


@pytest.mark.slow
def test_p5_half_open_connections_are_noticed_in_every_way_of_applying(database: Database) -> None:
    """All connections of an applier at once, with commands in hand; neither kernel nor server tells it."""
    hands = _Hands(database)
    with B(hands.answer) as b, Proxy(database.server) as proxy:
        _open(database, b.port)
        _append(database, "before")
        with shop.at_work(database, hands.applier, dsn=proxy.dsn(database.name, roles.APPLIER), workers=3):
            until(lambda: _done(database, "before") == set(WAYS), "the applier at work")
            _append(database, "in hand")
            until(hands.are_full, "a command in each hand")
            before = {pid for (pid,) in database.execute(_APPLIERS)}
            proxy.swallow()
            hands.go_on.set()
            _append(database, "after")
            until(lambda: _done(database, "after") == set(WAYS), "what came after it")
            until(lambda: _done(database, "in hand") == set(WAYS), "what was in hand")
            # None of them was left behind in the database, with what it has locked: nor that of the listener.
            until(lambda: not before & {pid for (pid,) in database.execute(_APPLIERS)}, "their sessions' end")
            until(
                lambda: database.value(
                    "SELECT count(*) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND query LIKE 'LISTEN%'"
                ),
                "a new listener",
            )
            until(lambda: not database.value("SELECT count(*) FROM inturn.ticket"), "all recorded")
    charged = "SELECT topic, key FROM inturn.key_mark WHERE attempts > 0 OR held_at IS NOT NULL"
    assert database.execute(charged) == []
    assert database.execute("SELECT v.* FROM inturn.topic t, inturn.verify(t.name) v") == []


def _noticed_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inturn.applier.process.half_open.ANSWER_SECONDS", 0.5)
    monkeypatch.setattr("inturn.applier.process.half_open.LOOK_SECONDS", 0.2)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    "way",
    [pytest.param(way, marks=pytest.mark.rest if way == "a batch handler" else []) for way in HALF_OPEN],
)
def test_p5_healthy_commands_take_no_more_beside_half_open_connections(
    database: Database, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All connections of the applier are, in each round, with the bad command in hand."""
    _noticed_soon(monkeypatch)
    seen, inside = bad_outside.Seen(), HALF_OPEN[way] in {"sql", "inside", "batches"}
    with Proxy(database.server) as proxy, ExitStack() as stack:
        handlers = _prepare(database, way, proxy, seen, stack)
        rounds.watch(database)
        rounds.shorten_leases(database)
        dsn = proxy.dsn(database.name, roles.APPLIER)
        with shop.at_work(database, handlers, dsn=dsn, workers=rounds.WORKERS):
            took = rounds.run(database, end_lease=False, keys=rounds.KEYS if inside else rounds.FEW_KEYS)
    assert took.calls <= 2 * took.commands
    assert took.turns <= 2 * took.commands
    if inside:
        # After each loss a worker takes the first keys of each topic alone, and no others.
        losses = rounds.ROUNDS * rounds.WORKERS
        assert took.leases <= min(CAREFUL_KEYS * len(rounds.KEYS) * losses, 2 * took.commands)
    else:
        assert took.leases <= 2 * took.commands
        everything = database.value("SELECT count(*) FROM inturn.command_log WHERE key <> 'bad'")
        assert everything <= sum(seen.calls.values()) <= 2 * everything
    assert innocent_and_charged(database) == []


def _prepare(database: Database, way: str, proxy: Proxy, seen: bad_outside.Seen, stack: ExitStack) -> Applier:
    """Make the topics, and what applies them; who has the bad command in hand has all swallowed."""

    async def swallow(post: Post, writer: asyncio.StreamWriter) -> None:
        proxy.swallow()
        await say_ok(post, writer)

    if HALF_OPEN[way] == "sql":
        bad_company.prepare(database, bad_company.Fault("", sql=standing.STAND), target="sql")
        standing.prepare(database)

        def swallow_while_it_stands(over: threading.Event) -> None:
            while not over.wait(0.03):
                if standing.stands(database):
                    proxy.swallow()
                    standing.let_go(database)

        stack.enter_context(rounds.beside(swallow_while_it_stands, 1))
        return Applier()
    if HALF_OPEN[way] in {"inside", "batches"}:
        fault = bad_company.Fault("", python=lambda _connection, _command: proxy.swallow())
        bad_company.prepare(database, fault, target="python")
        return bad_company.handlers(fault, in_batches=HALF_OPEN[way] == "batches")
    outside = bad_outside.Fault("", acts=proxy.swallow, says=swallow)
    b = stack.enter_context(B(bad_outside.service(outside, seen)))
    target = f"http://127.0.0.1:{b.port}/" if HALF_OPEN[way] == "http" else "python"
    bad_outside.prepare(database, outside, target, lease="4 seconds")  # a claim may be lost on its way
    handlers = {"plain": bad_outside.plain, "coroutine": bad_outside.coroutine}.get(HALF_OPEN[way])
    return Applier() if handlers is None else handlers(outside, seen)


def test_p5_healthy_keys_do_not_wait_until_a_half_open_connection_is_noticed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that it has in hand do, and nobody is charged."""
    monkeypatch.setattr("inturn.applier.process.half_open.LOOK_SECONDS", 0.2)
    monkeypatch.setattr("inturn.applier.process.half_open.ANSWER_SECONDS", 3600.0)
    lost: list[int] = []

    def swallow_once(connection: Any, _: Any) -> None:
        if not lost:
            proxy.swallow()
            lost.append(connection.info.backend_pid)

    with Proxy(database.server) as proxy:
        fault = bad_company.Fault("", python=swallow_once)
        bad_company.prepare(database, fault, target="python")
        handlers = bad_company.handlers(fault)
        with shop.at_work(database, handlers, dsn=proxy.dsn(database.name, roles.APPLIER), max_keys=1):
            until(lambda: lost, "the bad command in hand")
            with shop.at_work(database, handlers):
                until(lambda: bad_company.is_healed(database), "the healthy keys")
                ((cause, details),) = database.execute("SELECT cause, details FROM inturn.why('bad', 'bad')")
                assert cause == "applying"
                assert [session["backend"] for session in details["sessions"]] == lost
                monkeypatch.setattr("inturn.applier.process.half_open.ANSWER_SECONDS", 0.5)
                until(lambda: not database.value("SELECT count(*) FROM inturn.ticket"), "all of them")
    assert innocent_and_charged(database) == []
    assert database.value("SELECT count(*) FROM inturn.turn WHERE outcome <> 'applied'") == 0
    assert database.value("SELECT count(*) FROM bad.witness") == HEALTHY + OTHERS + 1


def _sleeps(connection: Any) -> None:
    connection.execute("SELECT pg_sleep(4)")


def _computes(connection: Any) -> None:
    connection.execute("SELECT")
    time.sleep(4)  # is at work elsewhere, with the transaction open: that is what is to be told apart
    connection.execute("SELECT")


def _streams(connection: Any) -> None:
    with connection.cursor() as cursor:
        for _ in cursor.stream("SELECT generate_series(1, 2)"):
            time.sleep(2)  # the same, between two rows


def _pipelines(connection: Any) -> None:
    with connection.pipeline():
        connection.execute("SELECT")
        time.sleep(4)  # the same, before it asks for the answer


@pytest.mark.slow
def test_p5_a_session_that_is_at_work_is_not_taken_for_half_open(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inturn.applier.process.half_open.ANSWER_SECONDS", 0.5)
    monkeypatch.setattr("inturn.applier.process.half_open.LOOK_SECONDS", 1.0)
    ways = {f.__name__: f for f in (_sleeps, _computes, _streams, _pipelines)}
    shop.open_shop(database)
    applier = Applier()
    backends: set[int] = set()

    @applier.handler(shop.TOPIC)
    def handle(connection: Any, command: Any) -> None:
        backends.add(connection.info.backend_pid)
        ways[command.key](connection)

    for key in ways:
        shop.append(database, key, "do")
    with shop.at_work(database, applier, workers=len(ways)):
        until(lambda: not database.value("SELECT count(*) FROM inturn.ticket"), "all of them")
    assert database.execute("SELECT DISTINCT outcome FROM inturn.turn WHERE outcome <> 'idle'") == [
        ("applied",)
    ]
    assert len(backends) <= len(ways)
