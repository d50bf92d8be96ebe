"""P5: a command that takes longer than its topic's timeout has failed, and the others go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from support import shop
from support.bad_company import HEALTHY, OTHERS, innocent_and_charged
from support.database import Database, until
from support.roles import APPLIER
from support.ways import TOO_LONG_IN_BATCHES, TOO_LONG_IN_PYTHON, TOO_LONG_OUTSIDE

from inturn.applier import Applier
from inturn.applier.inside.hand import TooManyAbandoned
from inturn.applier.process.threads import NoThread

_RELEASE = threading.Event()


@pytest.fixture
def slow(database: Database) -> Iterator[Database]:
    """A bad key whose command never ends, among healthy ones and beside another topic."""
    database.execute(
        "CREATE SCHEMA bad; CREATE TABLE bad.witness (topic text, key text, UNIQUE (topic, key))"
    )
    _RELEASE.clear()
    yield database
    _RELEASE.set()


def _open(database: Database, target: str = "python") -> None:
    for topic, count in (("bad", HEALTHY), ("other", OTHERS)):
        database.execute(
            f"SELECT inturn.create_topic('{topic}', '{target}', max_attempts => 2,"
            " backoff_base => '10 ms', backoff_cap => '10 ms', timeout => '1500 ms')"
        )
        if topic == "bad":
            database.execute("SELECT inturn.append('bad', 'bad', 'insert')")
        database.execute(
            "SELECT inturn.append_many(%s, array_agg('k' || n), array_agg('insert'::text))"
            " FROM generate_series(1, %s) n",
            [topic, count],
        )


def _assert_charged(database: Database) -> None:
    done = "SELECT count(*) FROM bad.witness WHERE key <> 'bad'"
    until(lambda: database.value(done) == HEALTHY + OTHERS, "the healthy keys")
    until(lambda: database.value("SELECT held_at FROM inturn.key_cursor WHERE key = 'bad'"), "held", 60)
    error = database.value("SELECT last_error FROM inturn.key_cursor WHERE key = 'bad'")
    assert "timeout" in error
    ((cause, says),) = database.execute("SELECT cause, says FROM inturn.why('bad', 'bad')")
    assert cause == "held"
    assert "timeout" in says
    assert innocent_and_charged(database) == []


def _write(connection: Any, command: Any) -> None:
    connection.execute("INSERT INTO bad.witness VALUES (%s, %s)", (command.topic, command.key))


@pytest.mark.parametrize("kind", TOO_LONG_IN_PYTHON)
@pytest.mark.parametrize("steady", [True, False], ids=["at work", "just started"])
def test_p5_a_python_handler_that_takes_too_long(
    slow: Database, kind: str, monkeypatch: pytest.MonkeyPatch, *, steady: bool
) -> None:
    monkeypatch.setattr("inturn.applier.inside.watchdog.GIVE_UP_SECONDS", 0.3)
    _open(slow)

    def apply(connection: Any, command: Any) -> None:
        _write(connection, command)
        if command.key != "bad":
            return
        if kind == "a statement":
            connection.execute("SELECT pg_sleep(60)")
        elif kind == "many statements":
            end_at = time.monotonic() + 60
            while time.monotonic() < end_at:
                connection.execute("SELECT pg_sleep(0.01)")
        else:
            _RELEASE.wait(60)

    applier = Applier()
    for topic in ("bad", "other"):
        applier.handler(topic)(apply)
    with shop.at_work(slow, applier, workers=2, steady=steady) as fleet:
        _assert_charged(slow)
        assert fleet.running
        assert all(worker.error is None for worker in fleet._crew.workers)


@pytest.mark.parametrize("what", ["note", "charge"])
def test_p5_a_python_handler_that_takes_too_long_is_charged_though_its_charge_is_cut_off(
    slow: Database, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Another worker has taken the key before it could be charged: on a busy machine, again and again.

    Its session is ended also where nothing can be noted before: the key would stay locked.
    """
    monkeypatch.setattr("inturn.applier.inside.watchdog.GIVE_UP_SECONDS", 0.3)

    def cut_off(*_: object) -> None:
        raise psycopg.errors.QueryCanceled

    monkeypatch.setattr(f"inturn.applier.inside.blame.Blame.{what}", cut_off)
    _open(slow)
    applier = Applier()

    def apply(connection: Any, command: Any) -> None:
        _write(connection, command)
        if command.key == "bad":
            _RELEASE.wait(60)

    for topic in ("bad", "other"):
        applier.handler(topic)(apply)
    with shop.at_work(slow, applier, workers=2, steady=False):
        _assert_charged(slow)


def test_p5_a_process_without_a_thread_for_another_worker_ends_with_an_error(
    slow: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its only worker was given up: it would end as well as one that was asked to."""
    monkeypatch.setattr("inturn.applier.inside.watchdog.GIVE_UP_SECONDS", 0.3)
    _open(slow)
    applier, start = Applier(), threading.Thread.start

    def start_no_worker(thread: threading.Thread) -> None:
        if thread.name.startswith("inturn-worker"):
            raise RuntimeError("can't start new thread")
        start(thread)

    def apply(connection: Any, command: Any) -> None:
        _write(connection, command)
        if command.key == "bad":
            monkeypatch.setattr(threading.Thread, "start", start_no_worker)
            _RELEASE.wait(60)

    for topic in ("bad", "other"):
        applier.handler(topic)(apply)
    with shop.at_work(slow, applier, workers=1) as fleet:
        until(lambda: fleet.stop.requested, "the end of the process")
        outcome = fleet.end(10)
    assert isinstance(outcome.error, NoThread)


@pytest.mark.parametrize("steady", [True, False], ids=["at work", "just started"])
def test_p5_a_sql_target_that_takes_too_long(slow: Database, *, steady: bool) -> None:
    slow.execute("""
        CREATE FUNCTION bad.apply(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO bad.witness VALUES (command.topic, command.key);
            IF command.key = 'bad' THEN PERFORM pg_sleep(60); END IF;
        END $$;
    """)
    _open(slow, "sql:bad.apply")
    with shop.at_work(slow, Applier(), workers=2, steady=steady):
        _assert_charged(slow)


@pytest.mark.parametrize("target", ["sql", "python"])
def test_p5_a_turn_of_which_a_command_failed_leaves_no_constraint_to_the_commit(
    database: Database, target: shop.Target
) -> None:
    """No statement_timeout ends what a COMMIT runs. This trigger hangs there, and nowhere else."""
    shop.open_shop(database, target=target, settings="max_attempts => 1")
    database.execute("""
        CREATE FUNCTION app.hang() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF current_query() ILIKE 'COMMIT%' THEN PERFORM pg_sleep(600); END IF;
            RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER hang AFTER INSERT ON app.witness DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION app.hang()""")
    shop.append(database, "bad", "insert", "fail")
    shop.append_keys(database, 3)
    done = "SELECT count(*) FROM app.witness WHERE key <> 'bad'"
    with shop.at_work(database, workers=1):
        until(lambda: database.value(done) == 3, "the healthy keys")
        held = "SELECT last_error FROM inturn.key_cursor WHERE key = 'bad' AND held_at IS NOT NULL"
        error = until(lambda: database.execute(held), "held", 60)[0][0]
    assert "refused bad" in error
    assert innocent_and_charged(database) == []


_HANGS = """
    CREATE FUNCTION bad.apply(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO bad.witness VALUES (command.topic, command.key);
        PERFORM pg_sleep(CASE command.key WHEN 'bad' THEN 60 ELSE 0.15 END);
    END $$;
"""


@pytest.mark.slow
def test_p5_under_call_a_sql_target_that_takes_too_long(slow: Database) -> None:
    """A CALL has one timer for all that it does: what that cancels is charged, and nobody else."""
    slow.execute(_HANGS)
    _open(slow, "sql:bad.apply")
    slow.execute("SELECT inturn.set_topic(name, max_attempts => 1) FROM inturn.topic")

    def call() -> bool:
        with suppress(psycopg.errors.QueryCanceled), slow.connect(user=APPLIER) as session:
            session.execute("SET statement_timeout = '8 s'")
            session.execute("SET inturn.careful_keys = 20")  # the default
            session.execute("CALL inturn.apply()")
        done: int = slow.value("SELECT count(*) FROM bad.witness WHERE key <> 'bad'")
        return done == HEALTHY + OTHERS

    until(call, "the healthy keys, some in each call")
    _assert_charged(slow)


@pytest.mark.slow
@pytest.mark.parametrize("timeout", ["1 min", "5 s", None])
def test_p5_under_call_nobody_is_charged_because_the_call_was_long(
    slow: Database, timeout: str | None
) -> None:
    """It ends before the session's statement_timeout, and leaves a command the time that it may take."""
    slow.execute(_HANGS)
    slow.execute("SELECT inturn.create_topic('bad', 'sql:bad.apply', timeout => %s)", [timeout])
    slow.execute(
        "SELECT inturn.append_many('bad', array_agg('k' || n), array_agg('do'::text))"
        " FROM generate_series(1, 80) n"
    )
    calls = 0
    with slow.connect(user=APPLIER) as session:
        # Less than all of it takes.
        session.execute("SET statement_timeout = '10 s'")
        session.execute("SET inturn.careful_keys = 20")
        while slow.value("SELECT count(*) FROM inturn.ticket"):
            calls += 1
            session.execute("CALL inturn.apply()")
    assert calls > 1
    assert innocent_and_charged(slow) == []
    assert slow.value("SELECT count(*) FROM bad.witness") == 80


@pytest.mark.parametrize("kind", TOO_LONG_OUTSIDE.values())
def test_p5_a_handler_outside_that_takes_too_long(
    slow: Database, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inturn.applier.outside.turns.GIVE_UP_SECONDS", 0.3)
    _open(slow)
    applier = Applier()

    def plain(command: Any) -> None:
        if command.key == "bad":
            _RELEASE.wait(60)
        with slow.connect(user=APPLIER) as connection:
            connection.execute(
                "INSERT INTO bad.witness VALUES (%s, %s) ON CONFLICT DO NOTHING", (command.topic, command.key)
            )

    async def coroutine(command: Any) -> None:
        import asyncio

        if command.key == "bad":
            await asyncio.sleep(60)
        await asyncio.to_thread(plain, command)

    for topic in ("bad", "other"):
        if kind == "plain":
            applier.handler(topic, outside=True)(plain)
        else:
            applier.handler(topic, outside=True)(coroutine)
    with shop.at_work(slow, applier):
        _assert_charged(slow)


def test_p5_too_many_handlers_that_do_not_return_end_the_process(
    slow: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inturn.applier.inside.watchdog.GIVE_UP_SECONDS", 0.1)
    monkeypatch.setattr("inturn.applier.fleet.MOST_ABANDONED", 3)
    _open(slow)
    applier = Applier()
    for topic in ("bad", "other"):
        applier.handler(topic)(lambda _connection, _command: _RELEASE.wait(60))
    with shop.at_work(slow, applier, workers=2) as fleet:
        # Not until it has ended: another handler may hang meanwhile, and an end waits for its grace.
        until(lambda: fleet.stop.requested, "the process to ask for its end")
        assert isinstance(fleet.end(0).error, TooManyAbandoned)


#: With a session's timeout of 1.5 s: what commands do.
_TAKES_HALF = "PERFORM pg_sleep(0.8);"
#: A sequence tells how often the first one was called. Once the second one has failed, it runs again; this
#: time the timeout ends it.
_ENDED_IN_THE_SECOND_RUN = """
    IF command.seq = 2 THEN RAISE 'refused'; END IF;
    PERFORM pg_sleep(CASE nextval('bad.calls') WHEN 3 THEN 60 ELSE 0 END);"""


@pytest.mark.parametrize(
    ("timeout", "steady", "body", "expected"),
    [
        ("statement_timeout", True, _TAKES_HALF, (2, 0, None)),
        ("statement_timeout", False, _TAKES_HALF, (2, 0, None)),
        ("transaction_timeout", True, _TAKES_HALF, (2, 0, None)),
        ("statement_timeout", True, _ENDED_IN_THE_SECOND_RUN, (1, 1, "refused")),
    ],
    ids=["at work", "just started", "of the transaction", "a second run"],
)
def test_p5_a_timeout_of_the_session_charges_no_command_for_those_before_it(
    slow: Database, timeout: str, body: str, expected: tuple[int, int, str | None], *, steady: bool
) -> None:
    if slow.server.version < 17:  # which has no other one
        timeout = "statement_timeout"
    slow.execute(f"""
        CREATE SEQUENCE bad.calls;
        CREATE FUNCTION bad.apply(command inturn.command) RETURNS void LANGUAGE plpgsql AS
        $$ BEGIN {body} END $$;
        SELECT inturn.create_topic('bad', 'sql:bad.apply', max_attempts => 1);
        SELECT inturn.append('bad', 'k', 'insert') FROM generate_series(1, 2);
    """)
    slow.execute(f"ALTER DATABASE {slow.name} SET {timeout} = '1500 ms'")
    with shop.at_work(slow, Applier(), workers=1, steady=steady):
        ended = "SELECT inturn.key_state(c) IN ('idle', 'held') FROM inturn.key_cursor c"
        until(lambda: slow.value(ended), "the end of the key")
    applied, attempts, error = slow.execute(
        "SELECT applied_seq, attempts, split_part(last_error, ' ', 1) FROM inturn.key_cursor"
    )[0]
    assert (applied, attempts, error) == expected


@pytest.mark.parametrize("kind", TOO_LONG_IN_BATCHES)
def test_p5_a_call_for_several_commands_that_takes_too_long(slow: Database, kind: str) -> None:
    """The command is found that takes so long: those before it take effect, and none of them is charged."""
    slow.execute("""
        CREATE FUNCTION bad.apply(commands inturn.command[]) RETURNS void LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO bad.witness SELECT c.topic, c.key || c.seq FROM unnest(commands) c;
            PERFORM pg_sleep(60) FROM unnest(commands) c WHERE c.name = 'hang';
        END $$;
    """)
    slow.execute(
        "SELECT inturn.create_topic('bad', %s, max_attempts => 2, backoff_base => '10 ms', timeout => '1 s')",
        [TOO_LONG_IN_BATCHES[kind]],
    )
    for name in ("do", "do", "hang", "do"):
        slow.execute("SELECT inturn.append('bad', 'k', %s), inturn.append('bad', 'other', 'do')", [name])
    applier = Applier()
    if kind == "a batch handler":

        @applier.batch_handler("bad")
        def apply(connection: Any, commands: list[Any]) -> None:
            for command in commands:
                connection.execute(
                    "INSERT INTO bad.witness VALUES ('bad', %s)", [f"{command.key}{command.seq}"]
                )
                if command.name == "hang":
                    connection.execute("SELECT pg_sleep(60)")

    with shop.at_work(slow, applier, workers=1):
        until(lambda: slow.value("SELECT max(held_at) FROM inturn.key_cursor"), "held")
        done = "SELECT applied_seq FROM inturn.key_cursor WHERE key = 'other'"
        until(lambda: slow.value(done) == 4, "the other key")
    applied, attempts, error = slow.execute(
        "SELECT applied_seq, attempts, last_error FROM inturn.key_cursor WHERE key = 'k'"
    )[0]
    assert (applied, attempts) == (2, 2)
    assert "timeout" in error
    assert slow.value("SELECT count(*) FROM bad.witness") == 2 + 4
    assert slow.execute("SELECT v.* FROM inturn.verify('bad') v") == []
