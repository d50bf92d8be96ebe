"""P5: when the world is at fault, no command is: the breaker of each kind of target, and Outage."""

from __future__ import annotations

import asyncio
import json
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
from inturn.applier.calls.call import Call
from inturn.applier.inside.batch import OLDEST
from inturn.applier.inside.sql_target import SqlTarget
from inturn.applier.outside.leases import Leases
from inturn.applier.process.connections import Connections
from inturn.applier.stop import Stop

#: How many keys a topic has; and how many where a test waits for as many probes.
KEYS, FEW = 40, 10
_EACH_WAY = pytest.mark.parametrize("way", OUTAGES.values(), ids=OUTAGES)
#: What one test shows of each way, `make test` looks into in two of them.
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


class RemoteTable:
    """The same for a SQL target, which raises as one that asks another server."""

    def __init__(self, database: Database) -> None:
        self._database = database
        database.execute("""
            CREATE TABLE app.remote (down boolean);
            INSERT INTO app.remote VALUES (true);
            CREATE SEQUENCE app.asked;
            CREATE FUNCTION app.do(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
            BEGIN
                IF command.name = 'refuse' THEN
                    RAISE EXCEPTION 'refused';
                ELSIF command.topic = 'needs' AND (SELECT down FROM app.remote) THEN
                    PERFORM nextval('app.asked');
                    RAISE EXCEPTION USING ERRCODE = '08001', MESSAGE = 'ConnectionError: does not answer';
                END IF;
                INSERT INTO app.done VALUES (command.topic, command.key);
            END $$;
            SELECT inturn.set_topic(name, target => 'sql:app.do') FROM inturn.topic;
        """)

    @property
    def down(self) -> bool:
        return bool(self._database.value("SELECT down FROM app.remote"))

    @down.setter
    def down(self, down: bool) -> None:
        self._database.execute("UPDATE app.remote SET down = %s", [down])

    @property
    def asked(self) -> int:
        return int(self._database.value("SELECT last_value FROM app.asked"))


def _needed(database: Database, way: str) -> Service | RemoteTable:
    """Return what the commands need."""
    return RemoteTable(database) if way == "sql" else Service()


@contextmanager
def _at_work(outage: Database, service: Service | RemoteTable, way: str, **options: Any) -> Iterator[Fleet]:
    """Apply both topics in a way of OUTAGES while the block runs."""
    with ExitStack() as stack:
        handlers = Applier()
        if isinstance(service, RemoteTable):
            pass  # the target applies them
        elif way == "http":
            b = stack.enter_context(B(_answer(outage, service)))
            outage.connect(user=OWNER).execute(
                "SELECT inturn.set_topic(name, target => %s) FROM inturn.topic", [b.url]
            )
        else:
            handlers = _handlers(outage, service, way)
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


@_SOME_WAYS
def test_p5_an_outage_of_what_handlers_need_holds_no_key(outage: Database, way: str) -> None:
    service = _needed(outage, way)
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


@_EACH_WAY
def test_p5_only_what_opens_a_breaker_counts_as_an_attempt_however_long_it_is_open(
    outage: Database, way: str
) -> None:
    outage.execute("UPDATE inturn.topic SET max_attempts = 1 WHERE name = 'needs'")
    outage.execute(
        "SELECT count(inturn.cancel_rest('needs', 'k' || n, 'fewer are enough'))"
        " FROM generate_series(%s + 1, %s) n",
        [FEW, KEYS],
    )
    service = _needed(outage, way)
    with _at_work(outage, service, way, workers=2, topics=["needs"]):
        # Before it opened, each key may have been tried once.
        until(lambda: service.asked >= FEW + 3, "three probes", 60)
        held = "SELECT count(*) FROM inturn.key_mark WHERE held_at IS NOT NULL"
        until(lambda: outage.value(held) >= OPENING_FAILURES, "what opened it is recorded")
        assert outage.value(held) == OPENING_FAILURES


@_SOME_WAYS
def test_p5_an_outage_is_told_by_why_status_and_keys(
    outage: Database, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr("inturn.applier.pacing.CHOOSE_SECONDS", 0.1)
    service = _needed(outage, way)
    cause = "SELECT cause, says, details ->> 'key' FROM inturn.why('needs', 'k1')"
    with _at_work(outage, service, way, workers=2):
        # By one look: a moment later a probe may have the key.
        told = until(
            lambda: [row for row in outage.execute(cause) if row[0] == "target_down"], "the cause", 60
        )
        _, says, tried = told[0]
        target = {"http": "(target http://", "sql": "(target sql:app.do)"}.get(way, "(target python)")
        assert target in says
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


@pytest.mark.parametrize("careful", [0, 50], ids=["batches", "alone"])
def test_p5_a_call_leaves_a_topic_out_whose_commands_need_what_is_down(
    outage: Database, careful: int
) -> None:
    """What opens its breaker counts, and nothing later; the next call tries again."""
    outage.execute("UPDATE inturn.topic SET max_attempts = 1 WHERE name = 'needs'")
    service = RemoteTable(outage)
    said: list[str | None] = []
    held = "SELECT count(*) FROM inturn.key_mark WHERE held_at IS NOT NULL"
    with outage.connect(user=APPLIER) as session:
        session.add_notice_handler(lambda diagnostic: said.append(diagnostic.message_primary))
        session.execute(f"SET inturn.careful_keys = {careful}")
        assert session.execute("CALL inturn.apply()").fetchone() == (KEYS, OPENING_FAILURES)
        assert said == [
            "topic 'needs' is left out: what its commands need does not answer, 5 keys in a row failed"
        ]
        assert outage.value(held) == OPENING_FAILURES
        service.down = False
        assert session.execute("CALL inturn.apply()").fetchone() == (KEYS - OPENING_FAILURES, 0)


def test_p5_an_outage_that_a_commit_meets_counts_no_more_than_that_opens_the_breaker(
    outage: Database,
) -> None:
    """As where foreign tables are written: what commands need has answered all their statements."""
    outage.execute("UPDATE inturn.topic SET max_attempts = 1 WHERE name = 'needs'")
    outage.execute("""
        CREATE TABLE app.far (n integer);
        CREATE FUNCTION app.down() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF current_query() ILIKE 'COMMIT%' THEN
                RAISE EXCEPTION USING ERRCODE = '08006', MESSAGE = 'server closed the connection';
            END IF;
            -- The end of the turn has checked all constraints: one more, for the COMMIT.
            SET CONSTRAINTS ALL DEFERRED;
            INSERT INTO app.far VALUES (1);
            RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER down AFTER INSERT ON app.far DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION app.down();
    """)
    applier, asked = Applier(), []

    @applier.handler("needs")
    def needs(connection: Any, command: Any) -> None:
        asked.append(command.key)
        connection.execute("INSERT INTO app.far VALUES (1)")

    with shop.at_work(outage, applier, topics=["needs"], workers=1) as fleet:
        until(lambda: fleet._chooser._breaker("needs").open, "the service to be taken for down")
        opened = len(asked)
        until(lambda: len(asked) >= opened + 3, "more probes")
    held = "SELECT count(*) FROM inturn.key_mark WHERE held_at IS NOT NULL"
    assert outage.value(held) == OPENING_FAILURES


#: Keys that are tried again share a batch, where each fails for itself.
_DUE = """UPDATE inturn.ticket SET ready_at = now() - interval '1 hour' WHERE epoch > 0;
    UPDATE inturn.turn SET started_at = finished_at"""
_FAILED_BEFORE = f"""SELECT inturn.fail('needs', key, epoch, 1, 1, 'before', 'me', took => '0')
    FROM inturn.claim('needs', '-infinity', 20); {_DUE}"""


def test_p5_the_outages_of_a_batch_are_recorded_by_one_call(
    outage: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The callers of its other keys wait for its commit."""
    RemoteTable(outage)
    outage.execute("SELECT inturn.set_topic('needs', max_attempts => 2, on_exhausted => 'skip')")
    outage.execute(_FAILED_BEFORE)
    said, run = list[str](), Call.on

    def on(call: Call[Any], connection: Any) -> Any:
        said.append(call.query.as_string(None))
        return run(call, connection)

    with Connections(outage.applier_dsn, None).connect() as worker:
        monkeypatch.setattr(Call, "on", on)
        batch = SqlTarget("needs", "inturn", "me", Stop()).apply_batch(worker, OLDEST, 20)
    assert len([text for text in said if "_outages(" in text or ".fail(" in text]) == 1, said
    assert (batch.keys, batch.failures, batch.skipped) == (20, 20, OPENING_FAILURES)
    assert outage.execute("SELECT attempts, count(*) FROM inturn.key_mark GROUP BY 1") == [(1, 15)]


def test_p5_of_the_outages_of_one_batch_no_more_count_than_open_the_breaker(outage: Database) -> None:
    RemoteTable(outage)
    outage.execute(_FAILED_BEFORE)
    batch = "SELECT outages, failures, answered FROM inturn.apply_batch('needs', '-infinity', 20, 'me'"
    attempts = "SELECT attempts, count(*) FROM inturn.key_mark GROUP BY 1 ORDER BY 1"
    with outage.connect(user=APPLIER) as session, session.transaction():
        ((outages, *others),) = session.execute(f"{batch}, judged => true)").fetchall()
        session.execute("SELECT inturn._judge_outages('needs', %s, false, 'me', '{}')", [json.dumps(outages)])
    assert others == [20, False]
    assert outage.execute(attempts) == [(1, 15), (2, 5)]
    # Whoever does not judge them has them recorded as failed attempts.
    outage.execute(_DUE)
    with outage.connect(user=APPLIER) as session:
        ((again, *others),) = session.execute(f"{batch})").fetchall()
    assert (len(again), others) == (len(outages), [20, False])
    assert outage.execute(attempts) == [(2, 15), (3, 5)]


@pytest.mark.parametrize("by", ["call", "daemon"])
def test_p5_a_failure_of_its_own_between_outages_keeps_the_breaker_of_a_sql_target_closed(
    outage: Database, by: str
) -> None:
    """So it shields no family of commands that fail, however they do: whatever commands need, it answers."""
    RemoteTable(outage)
    outage.execute("UPDATE inturn.topic SET max_attempts = 1 WHERE name = 'needs'")
    outage.execute(
        "UPDATE inturn.command_log SET name = 'refuse'"
        " WHERE topic = 'needs' AND substr(key, 2)::integer %% %s = 0",
        [OPENING_FAILURES],
    )
    outage.execute(
        "UPDATE inturn.ticket SET ready_at ="
        " now() - interval '1 hour' + substr(key, 2)::integer * interval '1 s'; DELETE FROM inturn.saved_pass"
    )
    held = "SELECT count(*) FROM inturn.key_mark WHERE held_at IS NOT NULL"
    if by == "call":
        with outage.connect(user=APPLIER) as session:
            session.execute("SET inturn.careful_keys = 0")
            session.execute("CALL inturn.apply(ARRAY['needs'])")
    else:
        with shop.at_work(outage, Applier(), workers=1, topics=["needs"]):
            until(lambda: outage.value(held) == KEYS, "all are held")
    assert outage.value(held) == KEYS


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
