"""The fixtures: one server a run, one database a test."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from support import initdb
from support.combinations import mark_rest
from support.database import Database
from support.door import DOOR
from support.pooler import Pooler
from support.server import Server, make_folder, make_user

from inturn.cli import advice
from inturn.cli.advice import Called
from inturn.schema.advice import DEFAULT_SCHEMA

_TEMPLATE = "inturn_template"
_PROMISES = Path(__file__).parents[1] / "docs" / "explanation" / "promises.md"
_numbers = itertools.count(1)
_WITNESS = """
    CREATE SCHEMA app;
    CREATE TABLE app.witness (
        id bigserial PRIMARY KEY, key text COLLATE "C" NOT NULL, seq bigint NOT NULL,
        name text NOT NULL, xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
        at timestamptz NOT NULL DEFAULT clock_timestamp());
    CREATE TABLE app.gate (key text PRIMARY KEY);
    CREATE FUNCTION app.apply_order(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO app.witness (key, seq, name) VALUES (command.key, command.seq, command.name);
        IF command.name = 'fail' THEN
            RAISE EXCEPTION 'refused %', command.key;
        ELSIF command.name = 'hang' THEN
            PERFORM FROM app.gate WHERE gate.key = command.key FOR UPDATE;
        END IF;
    END $$;
    SELECT inturn.create_topic('orders', 'sql:app.apply_order', backoff_base => '10 ms');
"""


def pytest_configure(config: pytest.Config) -> None:
    """Let what the tests start hear Ctrl-C, also where a shell has started pytest in the background.

    Such a shell has it ignored, which programs inherit; a handler they do not. The servers' user is made
    here too, and the folder for what initdb makes: the workers, which start after this, would all do so.
    """
    make_user()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: None)
    if not hasattr(config, "workerinput"):
        folder, maker = make_folder("inturn-pg-initdb-")
        os.environ[initdb.FOLDER] = str(folder)
        config.add_cleanup(partial(shutil.rmtree, folder))
        config.add_cleanup(maker.close)


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None, object, object]:
    """Mark what the page of promises names, and which combinations wait for `make rest`; long tests first.

    Leave out what is marked as needing something that the run lacks, and says what: a session of its own,
    through a pooler; or a newer server.
    """
    named = set(re.findall(r"`(?:\w+::)?(test_\w+)`", _PROMISES.read_text()))
    for item in items:
        if named & {getattr(item, "originalname", ""), item.path.stem}:
            item.add_marker("promise")
    mark_rest(items)
    without = {item for item in items if _lacks_what_it_needs(item)}
    if without:
        config.hook.pytest_deselected(items=[*without])
        items[:] = [item for item in items if item not in without]
    result = yield
    if hasattr(config, "workerinput"):
        _long_first(items, config.workerinput["workercount"])
    return result


def _lacks_what_it_needs(item: pytest.Item) -> bool:
    session, newer = item.get_closest_marker("needs_session"), item.get_closest_marker("needs_version")
    assert session is None or session.args, f"{item.nodeid}: needs_session says no reason"
    assert newer is None or len(newer.args) == 2, f"{item.nodeid}: needs_version says no reason"
    pooled, version = "INTURN_TEST_POOLER" in os.environ, int(os.environ.get("INTURN_TEST_PG", "18"))
    return (session is not None and pooled) or (newer is not None and version < newer.args[0])


def _long_first(items: list[pytest.Item], workers: int) -> None:
    """Have each worker begin with its share of the long tests, so that none is alone at the end of a run.

    Otherwise the order is as random as it was.
    """
    long = [item for item in items if _is_long(item)]
    others = [item for item in items if not _is_long(item)]
    arranged: list[pytest.Item] = []
    for number in range(workers):
        share = (len(items) - len(arranged)) // (workers - number)  # as `--dist worksteal` deals them out
        begins = long[number::workers]
        rest = max(share - len(begins), 0)
        arranged += begins + others[:rest]
        del others[:rest]
    items[:] = arranged + others


def _is_long(item: pytest.Item) -> bool:
    # What waits for a timeout, has more time than others, or is marked.
    return "timeout" in item.name or any(map(item.get_closest_marker, ("timeout", "long")))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what could not be tested on this machine; a skip is easily overlooked."""
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        if "NOT TESTED" in reason:
            terminalreporter.write_line(f"{report.nodeid}: {reason.removeprefix('Skipped: ')}", yellow=True)


@pytest.fixture(autouse=True)
def roles_only() -> Iterator[None]:
    """Fail a test that connects as a superuser, or applies as the owner, without having said so."""
    yield
    strange = [Server.strange.pop() for _ in list(Server.strange)]
    for running in Server.running:
        strange += running.strange_logins()
    assert not strange, f"no role's login, see support.roles: {strange}"


@pytest.fixture(autouse=True)
def called() -> Iterator[Called]:
    """What this process was called with, forgotten afterwards: the next test's advice would name it."""
    yield advice.called
    advice.called.dsn, advice.called.schema = None, DEFAULT_SCHEMA


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A running server of the version in INTURN_TEST_PG: 18 (default), 16, or Debian's 15.

    With INTURN_TEST_POOLER=transaction callers and appliers reach it through a PgBouncer in that mode.
    """
    server = Server(int(os.environ.get("INTURN_TEST_PG", "18")))
    server.start()
    with ExitStack() as around:
        if "INTURN_TEST_POOLER" in os.environ:
            server.pooler = around.enter_context(Pooler(server, os.environ["INTURN_TEST_POOLER"]))
        yield server
    server.remove()


@pytest.fixture(scope="session")
def template(server: Server) -> str:
    """The name of a database with the schema installed, to copy."""
    template = Database(server, _TEMPLATE)
    template.install()
    template.execute(DOOR)
    template.close()
    return _TEMPLATE


@pytest.fixture
def empty_database(server: Server) -> Iterator[Database]:
    """A fresh database without the schema."""
    database = Database(server, f"test_{next(_numbers)}")
    yield database
    database.drop()


@pytest.fixture(scope="session")
def witness_template(server: Server, template: str) -> str:
    """The name of a database with what `witness` has, to copy: to make it anew takes as long as a test."""
    database = Database(server, "inturn_witness", template=template)
    database.execute(_WITNESS)
    database.close()
    return database.name


@pytest.fixture
def database(request: pytest.FixtureRequest, server: Server, template: str) -> Iterator[Database]:
    """A fresh database with the schema installed."""
    if "witness" in request.fixturenames:
        template = request.getfixturevalue("witness_template")
    database = Database(server, f"test_{next(_numbers)}", template=template)
    yield database
    database.drop()


@pytest.fixture
def witness(database: Database) -> Database:
    """The database with topic `orders`, whose SQL target writes each command into app.witness.

    app.witness (id, key, seq, name, xid, at) is append-only, in the order of the effects. A command
    named `fail` raises after its effect; `hang` waits for app.gate's row, which a test may lock.
    """
    return database
