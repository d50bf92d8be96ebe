"""P5: when the world is at fault, no command is: the breaker of each kind of target, and Outage."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from support import shop
from support.b_server import Answer, B, Post, say_ok
from support.database import Database, until
from support.process import run_inturn
from support.roles import APPLIER, OWNER
from support.ways import OUTAGES, UNHANDLED

from inturn.applier import Applier, Fleet, Outage
from inturn.applier.breaker import OPENING_FAILURES
from inturn.applier.outside.leases import Leases

KEYS = 40
_EACH_WAY = pytest.mark.parametrize("way", OUTAGES.values(), ids=OUTAGES)
#: What the first test has shown of each way `make test` looks into in two of them.
_SOME_WAYS = pytest.mark.parametrize(
    "way",
    [
        pytest.param(what, id=way, marks=[] if what in {"inside", "plain"} else pytest.mark.rest)
        for way, what in OUTAGES.items()
    ],
)


@pytest.fixture
def outage(database: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    """Two topics of 40 keys whose commands need a service, with the defaults but for the waits."""
    monkeypatch.setattr("inturn.applier.breaker.FIRST_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr("inturn.applier.breaker.LAST_PAUSE_SECONDS", 0.1)
    database.execute("CREATE SCHEMA app; CREATE TABLE app.done (topic text, key text, UNIQUE (topic, key));")
    for topic in ("needs", "other"):
        database.execute(
            f"SELECT inturn.create_topic('{topic}', backoff_base => '1 ms', backoff_cap => '1 ms')"
        )
        database.execute(
            "SELECT inturn.append_many(%s, array_agg('k' || n), array_agg('do'::text))"
            " FROM generate_series(1, %s) n",
            [topic, KEYS],
        )
    return database


class Service:
    """What the commands of `needs` need."""

    def __init__(self) -> None:
        self.down = True
        self.asked = 0

    def ask(self) -> None:
        if self.down:
            self.asked += 1
            raise ConnectionError("does not answer")

    def serve(self, command: Any) -> None:
        if command.topic == "needs":
            self.ask()


@contextmanager
def _at_work(outage: Database, service: Service, way: str, **options: Any) -> Iterator[Fleet]:
    """Apply both topics in a way of OUTAGES while the block runs."""
    with ExitStack() as stack:
        if way == "http":
            b = stack.enter_context(B(_answer(outage, service)))
            outage.connect(user=OWNER).execute(
                "SELECT inturn.set_topic(name, target => %s) FROM inturn.topic", [b.url]
            )
        handlers = Applier() if way == "http" else _handlers(outage, service, way)
        yield stack.enter_context(shop.at_work(outage, handlers, **options))


def _handlers(database: Database, service: Service, way: str) -> Applier:
    applier, (single, batch) = Applier(), _inside(service)
    for topic in ("needs", "other"):
        if way == "inside":
            applier.handler(topic)(single)
        elif way == "batches":
            applier.batch_handler(topic)(batch)
        else:
            applier.handler(topic, outside=True)(_outside(database, service, awaited=way == "coroutine"))
    return applier


def _inside(service: Service) -> tuple[Callable[..., None], Callable[..., None]]:
    def single(connection: Any, command: Any) -> None:
        service.serve(command)
        connection.execute("INSERT INTO app.done VALUES (%s, %s)", (command.topic, command.key))

    def batch(connection: Any, commands: list[Any]) -> None:
        for command in commands:
            single(connection, command)

    return single, batch


def _outside(database: Database, service: Service, *, awaited: bool) -> Callable[[Any], Any]:
    def plain(command: Any) -> None:
        service.serve(command)
        _note(database, command.topic, command.key)

    async def coroutine(command: Any) -> None:
        await asyncio.to_thread(plain, command)

    return coroutine if awaited else plain


def _answer(database: Database, service: Service) -> Answer:
    """Return how a server answers that closes the connection while the service is down."""

    async def say(post: Post, writer: asyncio.StreamWriter) -> None:
        topic = post.headers["inturn-topic"]
        if topic == "needs":
            service.ask()
        await asyncio.to_thread(_note, database, topic, post.key)
        await say_ok(post, writer)

    return say


def _note(database: Database, topic: str, key: str) -> None:
    with database.connect(user=APPLIER) as connection:
        connection.execute("INSERT INTO app.done VALUES (%s, %s) ON CONFLICT DO NOTHING", (topic, key))


@_EACH_WAY
def test_p5_an_outage_of_what_handlers_need_holds_no_key(outage: Database, way: str) -> None:
    service = Service()
    with _at_work(outage, service, way, workers=2):
        done = "SELECT count(*) FROM app.done WHERE topic = %s"
        until(lambda: outage.value(done, ["other"]) == KEYS, "the other topic")
        # It took no more than it takes otherwise: one turn a command.
        assert outage.value("SELECT count(*) FROM inturn.turn WHERE topic = 'other'") <= KEYS
        # Long after every key would have been held: five attempts, a millisecond apart.
        until(lambda: service.asked >= 12, "more probes")
        assert outage.value("SELECT count(*) FROM inturn.key_mark WHERE held_at IS NOT NULL") == 0
        service.down = False
        until(lambda: outage.value(done, ["needs"]) == KEYS, "all of it")
    assert outage.value("SELECT count(*) FROM inturn.turn WHERE outcome = 'held'") == 0


@_SOME_WAYS
def test_p5_only_what_opens_a_breaker_counts_as_an_attempt_however_long_it_is_open(
    outage: Database, way: str
) -> None:
    outage.execute("UPDATE inturn.topic SET max_attempts = 1 WHERE name = 'needs'")
    service = Service()
    with _at_work(outage, service, way, workers=2, topics=["needs"]):
        # Before it opened, each key may have been tried once.
        until(lambda: service.asked >= KEYS + 3, "three probes", 60)
        held = "SELECT count(*) FROM inturn.key_mark WHERE held_at IS NOT NULL"
        until(lambda: outage.value(held) >= OPENING_FAILURES, "what opened it is recorded")
        assert outage.value(held) == OPENING_FAILURES


@_SOME_WAYS
def test_p5_an_outage_is_told_by_why_status_and_keys(
    outage: Database, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr("inturn.applier.pacing.CHOOSE_SECONDS", 0.1)
    service = Service()
    cause = "SELECT cause, says, details ->> 'key' FROM inturn.why('needs', 'k1')"
    with _at_work(outage, service, way, workers=2):
        # By one look: a moment later a probe may have the key.
        told = until(
            lambda: [row for row in outage.execute(cause) if row[0] == "target_down"], "the cause", 60
        )
        _, says, tried = told[0]
        assert f"(target {'http://' if way == 'http' else 'python)'}" in says
        assert ("disconnected" if way == "http" else "ConnectionError: does not answer") in says
        assert tried.startswith("k")
        code, out, _ = run_inturn(outage.dsn, "status", "--check")
        assert code == 9
        assert out.startswith("topic needs: its target has not answered for ")
        assert "has not answered" in run_inturn(outage.dsn, "status")[1]
        listed = run_inturn(outage.dsn, "keys", "--topic", "needs")[1]
        assert "target down" in listed
        assert "now" not in listed
        service.down = False
        until(lambda: not outage.value("SELECT bool_or(down ? 'needs') FROM inturn.applier"), "answers again")
        assert run_inturn(outage.dsn, "status", "--check")[0] == 0


def test_p5_an_outage_that_has_held_every_key_costs_no_more_than_idle_topics(
    outage: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a probe is due and no key is ready for it, an applier outside sleeps as it does otherwise."""
    claims: list[str] = []
    claim = Leases.claim

    async def counted(self: Leases, connection: Any, topic: str, *args: Any, **options: Any) -> Any:
        claims.append(topic)
        return await claim(self, connection, topic, *args, **options)

    monkeypatch.setattr(Leases, "claim", counted)
    outage.execute("UPDATE inturn.topic SET max_attempts = 1 WHERE name = 'needs'")
    outage.execute(
        "SELECT inturn.pause('needs', 'k' || n) FROM generate_series(%s::integer, %s) n",
        [OPENING_FAILURES + 1, KEYS],
    )
    with _at_work(outage, Service(), "plain", workers=1, topics=["needs"]):
        held = "SELECT count(*) FROM inturn.key_mark WHERE held_at IS NOT NULL"
        until(lambda: outage.value(held) == OPENING_FAILURES, "all that were not paused are held", 60)
        began, before = time.monotonic(), len(claims)
        until(lambda: time.monotonic() - began > 2, "two seconds")
    # Ever less often, up to once a second, by two claims a look; it was thousands.
    assert len(claims) - before < 40


def test_p5_failures_of_one_key_open_no_breaker(database: Database) -> None:
    """However often it fails: the others of its topic go on."""
    shop.open_shop(database, settings="max_attempts => 20, backoff_base => '1 ms', backoff_cap => '1 ms'")
    shop.append(database, "bad", "fail")
    with shop.at_work(database):
        until(lambda: database.value("SELECT held_at FROM inturn.key_cursor WHERE key = 'bad'"), "held")
    assert database.value("SELECT attempts FROM inturn.key_cursor WHERE key = 'bad'") == 20


@pytest.mark.parametrize("kind", ["python", "outside", "sql"])
def test_p5_what_a_handler_calls_an_outage_is_no_attempt(database: Database, kind: str) -> None:
    database.execute("""
        CREATE FUNCTION public.down(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION USING ERRCODE = 'IT023', MESSAGE = 'b is down', DETAIL = '1 ms'; END $$;
    """)
    database.execute(
        "SELECT inturn.create_topic('needs', %s, max_attempts => 1)",
        ["sql:public.down" if kind == "sql" else "python"],
    )
    database.execute("SELECT inturn.append('needs', 'k', 'do')")
    applier = Applier()

    def down(*_: object) -> None:
        raise Outage("b is down", after=0.001)

    if kind != "sql":
        applier.handler("needs", outside=kind == "outside")(down)  # type: ignore[call-overload]
    with shop.at_work(database, applier):
        until(lambda: database.value("SELECT count(*) FROM inturn.turn") >= 4, "several tries")
    assert database.execute("SELECT DISTINCT outcome FROM inturn.turn") == [("retrying",)]
    error, held = database.execute("SELECT last_error, held_at FROM inturn.key_cursor")[0]
    assert error.startswith("b is down")
    assert held is None


@pytest.mark.parametrize("outside", UNHANDLED.values(), ids=list(UNHANDLED))
def test_p5_a_command_that_another_process_may_know_is_put_off(database: Database, outside: bool) -> None:
    """A rolling deployment: the old process gets the new command first."""
    shop.open_shop(database, settings="max_attempts => 1")
    shop.append(database, "k", "new")
    old = Applier()
    old.handler(shop.TOPIC, "insert", outside=outside)(lambda *_: None)  # type: ignore[call-overload]
    database.execute("SELECT inturn.announce_applier('elsewhere:1:1', '{shop}', 'elsewhere', 1, '0001')")
    with shop.at_work(database, old):
        until(lambda: database.value("SELECT count(*) FROM inturn.turn"), "a try")
    assert database.execute("SELECT attempts, held_at FROM inturn.key_cursor") == [(0, None)]
    wait = database.value("SELECT extract(epoch FROM ready_at - failed_at) FROM inturn.key_cursor")
    assert 4 < wait < 6
    database.execute("DELETE FROM inturn.applier; UPDATE inturn.ticket SET ready_at = now()")
    with shop.at_work(database, old):
        until(lambda: database.value("SELECT held_at FROM inturn.key_cursor"), "held: nobody else is there")


def test_p5_a_probe_that_does_not_return_is_given_up_and_another_one_made(
    outage: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that is down may as well hang: its process goes on with the topic."""
    monkeypatch.setattr("inturn.applier.inside.watchdog.GIVE_UP_SECONDS", 0.3)
    outage.execute("SELECT inturn.set_topic('needs', timeout => '500 ms')")
    service, hangs, release, met = Service(), threading.Event(), threading.Event(), threading.Event()
    applier = Applier()

    @applier.handler("needs")
    def needs(connection: Any, command: Any) -> None:
        if hangs.is_set() and not met.is_set():
            met.set()
            release.wait(120)
        if not met.is_set():
            service.ask()
        connection.execute("INSERT INTO app.done VALUES (%s, %s)", (command.topic, command.key))

    try:
        with shop.at_work(outage, applier, topics=["needs"], workers=1) as fleet:
            until(lambda: fleet._chooser._breaker("needs").open, "the service to be taken for down")
            hangs.set()
            assert met.wait(60)
            until(lambda: outage.value("SELECT count(*) FROM app.done") >= KEYS - 1, "the other keys")
    finally:
        release.set()
