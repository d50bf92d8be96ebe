"""An idle worker wakes by NOTIFY within milliseconds, and by polling when NOTIFY never comes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import pytest
from support.database import Database, until
from support.roles import APPLIER
from support.shop import (
    TOPIC,
    append,
    append_keys,
    applied,
    apply_all,
    assert_once_and_in_turn,
    at_work,
    never_poll,
    open_shop,
    wait_applied,
)

from inturn.applier import pacing
from inturn.applier.inside.sleep import Sleep
from inturn.applier.stop import Bell


def _asleep(database: Database) -> bool:
    return bool(database.value("SELECT count(*) FROM inturn.listener WHERE asleep_until > clock_timestamp()"))


def test_an_idle_worker_wakes_by_notify_without_polling(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_shop(database)
    never_poll(database, monkeypatch)
    with at_work(database):
        until(lambda: _asleep(database), "the first sleep")
        for number in range(20):
            append(database, f"k{number}", "insert")
            wait_applied(database, f"k{number}")


def test_a_worker_drains_by_polling_when_nobody_is_notified(database: Database) -> None:
    open_shop(database)
    # As after a crash, which empties the unlogged table, or behind a pooler: nothing ever notifies.
    database.execute("""
        CREATE FUNCTION app.forget() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
        CREATE TRIGGER forget BEFORE INSERT OR UPDATE ON inturn.listener
            FOR EACH ROW EXECUTE FUNCTION app.forget();
    """)
    with at_work(database):
        for number in range(3):
            append(database, f"k{number}", "insert")
            wait_applied(database, f"k{number}")
    assert not _asleep(database)
    assert_once_and_in_turn(database)


def test_a_worker_whose_listener_was_terminated_goes_on_by_polling(database: Database) -> None:
    open_shop(database)
    listening = "query LIKE 'LISTEN%%' AND datname = current_database()"
    with at_work(database):
        until(
            lambda: database.value(f"SELECT count(*) FROM pg_stat_activity WHERE {listening}", []),
            "the listener",
        )
        killed = database.execute(
            f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE {listening}", []
        )
        assert killed == [(True,)]
        append(database, "a", "insert")
        until(lambda: applied(database, "a"), "the effect")


@pytest.fixture
def ear(database: Database) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """A session that listens beside the workers."""
    open_shop(database)
    connection = database.connect(user=APPLIER)
    connection.execute('LISTEN "inturn.ready"')
    yield connection
    connection.close()


def _heard(ear: psycopg.Connection[tuple[object, ...]], database: Database) -> list[str]:
    """Return what was notified until now: a mark of our own comes after it."""
    database.execute("NOTIFY \"inturn.ready\", 'the end'")
    heard: list[str] = []
    for notification in ear.notifies(timeout=30):
        if notification.payload == "the end":
            return heard
        heard.append(notification.payload)
    raise AssertionError("no notification came at all")


def _announce(database: Database) -> None:
    database.execute("SELECT inturn.announce_sleep(ARRAY['shop'])")


def test_append_notifies_when_a_key_turns_ready_while_an_applier_sleeps(
    database: Database, ear: psycopg.Connection[tuple[object, ...]]
) -> None:
    _announce(database)
    append(database, "a", "insert")
    assert _heard(ear, database) == [TOPIC]
    append(database, "a", "update")
    assert _heard(ear, database) == [], "the key was ready already"
    apply_all(database)
    _announce(database)
    append(database, "a", "delete")
    assert _heard(ear, database) == [TOPIC], "an idle key turned ready again"


def test_append_notifies_nobody_while_no_applier_sleeps(
    database: Database, ear: psycopg.Connection[tuple[object, ...]]
) -> None:
    append_keys(database, 10)
    assert _heard(ear, database) == []
    database.execute("INSERT INTO inturn.listener VALUES ('shop', clock_timestamp() - interval '1 ms')")
    append_keys(database, 10, prefix="more")
    assert _heard(ear, database) == [], "the sleep was announced too long ago"


def test_append_notifies_nobody_for_the_sleep_of_another_topics_applier(
    database: Database, ear: psycopg.Connection[tuple[object, ...]]
) -> None:
    database.execute("SELECT inturn.announce_sleep(ARRAY['other'])")
    append(database, "a", "insert")
    assert _heard(ear, database) == []


def test_a_rolled_back_append_notifies_nobody(
    database: Database, ear: psycopg.Connection[tuple[object, ...]]
) -> None:
    _announce(database)
    caller = database.session()
    caller.execute("SELECT inturn.append('shop', 'a', 'insert')")
    caller.rollback()
    assert _heard(ear, database) == []


def test_a_sleep_is_announced_at_most_once_a_second(database: Database) -> None:
    open_shop(database)
    _announce(database)
    first = database.execute("SELECT asleep_until, xmin::text FROM inturn.listener")
    for _ in range(50):
        _announce(database)
    again = database.execute("SELECT asleep_until, xmin::text FROM inturn.listener")
    ((late,),) = database.execute(
        "SELECT clock_timestamp() > asleep_until - interval '1 second' FROM inturn.listener"
    )
    assert late or first == again


def test_a_key_that_turns_ready_between_the_look_and_the_announcement_is_found_before_the_sleep(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It notifies nobody, and is ready before the sleep is announced: only a second look finds it."""
    open_shop(database)
    keys: list[str] = []
    slept_over: list[str] = []
    announce, wait = Sleep.announce, Bell.wait

    def append_first(sleep: Sleep, connection: psycopg.Connection[Any], topics: Sequence[str]) -> None:
        if len(keys) < 3:
            database.execute("DELETE FROM inturn.listener")
            keys.append(f"k{len(keys)}")
            append(database, keys[-1], "insert")
        announce(sleep, connection, topics)

    def look_first(bell: Bell, seconds: float) -> frozenset[str] | None:
        slept_over.extend(key for key in keys if not applied(database, key))
        return wait(bell, min(seconds, 0.01))

    monkeypatch.setattr(Sleep, "announce", append_first)
    monkeypatch.setattr(Bell, "wait", look_first)
    monkeypatch.setattr(pacing, "ANNOUNCED_SECONDS", 0.0)  # every sleep is announced anew
    with at_work(database, workers=1):
        until(lambda: len(keys) == 3 and all(applied(database, key) for key in keys), "all of them")
    assert slept_over == []


def test_a_key_that_waits_for_its_retry_is_tried_when_it_is_due_not_when_polled(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_shop(database, settings="backoff_base => '1.5 seconds', max_attempts => 2")
    never_poll(database, monkeypatch)
    append(database, "a", "fail")
    with at_work(database):
        until(lambda: database.value("SELECT held_at IS NOT NULL FROM inturn.key_cursor"), "held")
    due, tried = database.execute("""
        SELECT extract(epoch FROM finished_at)::float8, extract(epoch FROM started_at)::float8
        FROM inturn.turn ORDER BY epoch
    """)
    # Half to the whole of 1.5 s by jitter, and then without a poll.
    assert tried[1] - due[0] > 0.7
