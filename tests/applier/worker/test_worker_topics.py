"""What a worker does grows with the topics that have ready keys, not with those that there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from support.database import Database, until
from support.process import run_apply
from support.roles import APPLIER
from support.shop import TOPIC, append, applied, at_work, open_shop

from inturn.applier import Fleet
from inturn.applier.inside.sleep import ANNOUNCED_BY_NAME
from inturn.applier.inside.sql_target import SqlTarget
from inturn.applier.inside.worker import Worker
from inturn.applier.stop import Bell, Stop
from inturn.applier.targets import KINDS, Kind
from inturn.schema.errors import TargetRefused


class Counted(psycopg.Connection[Any]):
    """A connection that counts its statements."""

    statements = 0

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        type(self).statements += 1
        return super().execute(*args, **kwargs)


class Script(Bell):
    """A bell whose sleeps are steps of the test: each says what woke the worker, the last one stops it."""

    def __init__(self, stop: Stop, steps: list[Callable[[], frozenset[str] | None]]) -> None:
        super().__init__(1)
        self._stop = stop
        self._steps = list(steps)
        #: How many statements the worker made before each sleep.
        self.statements: list[int] = []

    def wait(self, seconds: float) -> frozenset[str] | None:
        self.statements.append(Counted.statements)
        Counted.statements = 0
        if not self._steps:
            self._stop.request()
            return None
        return self._steps.pop(0)()


def statements_a_sleep(
    database: Database, topics: list[str], steps: list[Callable[[], frozenset[str] | None]]
) -> list[int]:
    """Run a worker through the steps; return how many statements it made before each sleep."""
    stop = Stop()
    bell = Script(stop, steps)
    targets = [SqlTarget(topic, "inturn", "test", Stop()) for topic in topics]
    Counted.statements = 0
    worker = Worker(
        lambda: Counted.connect(database.applier_dsn, autocommit=True),
        lambda _: targets,
        schema="inturn",
        max_keys=50,
        drain=False,
        stop=stop,
        bell=bell,
    )
    worker.run()
    assert worker.error is None
    return bell.statements


def make_topics(database: Database, count: int) -> list[str]:
    database.execute(
        "SELECT inturn.create_topic('idle-' || n, 'sql:app.apply') FROM generate_series(1, %s) n", [count]
    )
    return [TOPIC, *(f"idle-{number}" for number in range(1, count + 1))]


def nothing() -> None:
    return None


def test_an_idle_worker_makes_as_few_statements_for_a_thousand_topics_as_for_one(database: Database) -> None:
    open_shop(database, target="sql")
    one = statements_a_sleep(database, [TOPIC], [nothing] * 4)
    many = statements_a_sleep(database, make_topics(database, 1000), [nothing] * 4)
    assert many == one
    assert max(one[1:]) <= 4, one


def test_a_worker_that_is_rung_for_a_topic_visits_that_and_does_not_look_at_the_others(
    database: Database,
) -> None:
    open_shop(database, target="sql")
    topics = make_topics(database, 100)

    def rung() -> frozenset[str]:
        append(database, "order-1", "insert")
        return frozenset([TOPIC])

    idle, after = statements_a_sleep(database, topics, [nothing, rung])[1:]
    assert applied(database, "order-1") == [1]
    # A batch, a claim that finds nothing more, when the next key is due: no pass over the topics.
    assert after <= 3 + idle


def test_a_worker_that_was_rung_for_another_topic_finds_the_key_at_its_next_look(database: Database) -> None:
    open_shop(database, target="sql")

    def other() -> frozenset[str]:
        append(database, "order-1", "insert")
        return frozenset(["idle-1"])  # and its own ring was lost

    statements_a_sleep(database, make_topics(database, 3), [other, nothing])
    # Whether its announcement still stood or not: by then it has looked at all.
    statements_a_sleep(database, [TOPIC], [])
    assert applied(database, "order-1") == [1]


@pytest.mark.parametrize("count", [ANNOUNCED_BY_NAME - 1, ANNOUNCED_BY_NAME])
def test_a_sleeping_worker_of_many_topics_announces_itself_by_one_row(database: Database, count: int) -> None:
    open_shop(database, target="sql")
    topics = make_topics(database, count)
    statements_a_sleep(database, topics, [])
    rows = database.execute("SELECT topic FROM inturn.listener ORDER BY topic")
    assert rows == [(topic,) for topic in (sorted(topics) if count < ANNOUNCED_BY_NAME else [""])]
    listener = database.connect(user=APPLIER)
    listener.execute('LISTEN "inturn.ready"')
    append(database, "order-1", "insert")
    (heard,) = listener.notifies(timeout=30, stop_after=1)
    assert heard.payload == TOPIC


def test_the_line_that_says_what_is_applied_names_a_few_topics(database: Database) -> None:
    open_shop(database, target="sql")
    make_topics(database, 12)
    code, _, logged = run_apply(database.dsn, "--drain", app=None)
    assert code == 0
    assert "idle-1" in logged
    assert "8 more" in logged
    assert "idle-9" not in logged


@pytest.fixture
def later_kind(database: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    """A topic whose kind of target this release does not know: of a revision that it goes on through."""
    monkeypatch.setitem(KINDS, "http", Kind(("gopher://",)))
    open_shop(database)
    database.execute("SELECT inturn.create_topic('posts', 'http://127.0.0.1:9')")
    return database


def test_a_topic_of_a_later_release_is_left_out_and_the_others_are_served(
    later_kind: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """At the start and later on: every applier of the release before would end at once, for all topics."""
    with at_work(later_kind) as fleet:
        append(later_kind, "a", "insert")
        until(lambda: applied(later_kind, "a"), "the other topic")
        assert fleet._crew.error is None
    assert caplog.text.count("which this inturn does not know") == 1


def test_a_topic_of_a_later_release_is_refused_where_it_is_named(later_kind: Database) -> None:
    fleet = Fleet(later_kind.applier_dsn, topics=["posts"])
    with pytest.raises(TargetRefused, match="which this inturn does not know"):
        fleet.start()
