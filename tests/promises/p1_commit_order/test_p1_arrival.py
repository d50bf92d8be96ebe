"""P1 where numbers are given on arrival: what was committed before another append began comes first."""

from __future__ import annotations

import itertools
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from support import roles
from support.arrivals import APPEND, appended, arrive, number, numbered
from support.database import Database
from support.own_server import own_database
from support.race import replace_in, unblocked
from support.refusal import refusal
from support.server import Server


def test_p1_arrival_callers_of_one_key_never_wait_for_each_other(posts: Database) -> None:
    first, second = posts.session(), posts.session()
    for session, name in ((first, "a"), (second, "b"), (first, "c")):
        assert unblocked(posts, session, APPEND, ["x", name]) == [(None,)]
    second.commit()
    first.commit()
    assert number(posts) == 3
    # The order of arrival: they overlap, so any would do, but for the two of one transaction.
    assert numbered(posts, "x") == ["a", "b", "c"]


def test_p1_arrival_what_commits_late_comes_before_what_began_after_its_commit(posts: Database) -> None:
    """A pass must not go on behind the highest id that it took."""
    late = posts.session()
    arrive(late, "x", "late")
    arrive(posts, "x", "early")
    assert number(posts) == 1
    late.commit()
    arrive(posts, "x", "after")
    assert number(posts) == 2
    assert numbered(posts, "x") == ["early", "late", "after"]


def test_p1_arrival_appends_of_a_transaction_keep_their_order_and_what_is_undone_never_comes(
    posts: Database,
) -> None:
    session = posts.session()
    arrive(session, "x", "a")
    for name, end in (("b", "RELEASE"), ("never", "ROLLBACK TO"), ("c", "RELEASE")):
        session.execute("SAVEPOINT s")
        arrive(session, "x", name)
        session.execute(f"{end} s")
    arrive(posts, "x", "other")
    assert number(posts) == 1
    session.commit()
    undone = posts.session()
    arrive(undone, "x", "never")
    undone.rollback()
    assert number(posts) == 3
    assert numbered(posts, "x") == ["other", "a", "b", "c"]


def test_p1_arrival_a_prepared_transaction_comes_when_it_is_committed(server: Server) -> None:
    with own_database(server, extra_settings="max_prepared_transactions = 1") as posts:
        posts.execute("SELECT inturn.create_topic('posts', numbering => 'arrival')")
        session = posts.session(autocommit=True)
        session.execute("BEGIN")
        arrive(session, "x", "prepared")
        session.execute("PREPARE TRANSACTION 'x'")
        arrive(posts, "x", "a")
        assert number(posts) == 1
        session.execute("COMMIT PREPARED 'x'")
        arrive(posts, "x", "b")
        assert number(posts) == 2
        assert numbered(posts, "x") == ["a", "prepared", "b"]


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_p1_arrival_an_old_snapshot_is_no_conflict(posts: Database, level: str) -> None:
    session = posts.session()
    session.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
    session.execute("SELECT count(*) FROM inturn.command_log")
    arrive(posts, "x", "a")
    number(posts)
    arrive(session, "x", "b")
    session.commit()
    assert number(posts) == 1
    assert numbered(posts, "x") == ["a", "b"]


def test_p1_arrival_an_idempotency_key_appends_once(posts: Database) -> None:
    once = "SELECT inturn.append('posts', 'x', 'a', idempotency_key => 'once')"
    first, second = posts.session(), posts.session()
    assert first.execute(once) == [(None,)]
    waiting = second.begin(once)
    assert second.wait_blocked() == [first.pid]
    first.commit()
    assert waiting.result() == [(None,)]
    second.commit()
    assert posts.value(once) is None
    assert number(posts) == 1
    assert posts.value(once) == 1
    # A row that no append leaves: its idempotency key is in the log.
    posts.execute(
        "INSERT INTO inturn.intake (topic, key, name, payload, idempotency_key)"
        " VALUES ('posts', 'x', 'e', '{}', 'once'), ('posts', 'x', 'f', '{}', 'twice')"
    )
    assert number(posts) == 1
    assert numbered(posts, "x") == ["a", "f"]
    assert posts.value("SELECT count(*) FROM inturn.intake") == 0


def test_p1_arrival_a_key_that_was_drained_is_woken(posts: Database) -> None:
    for name in "abc":
        appended(posts, "x", name)
        posts.execute("CALL inturn.apply()")
        assert posts.value("SELECT name FROM app.witness ORDER BY id DESC LIMIT 1") == name
    assert posts.value("SELECT count(*) FROM inturn.ticket") == 0


def test_p4_arrival_an_append_wakes_an_applier_that_sleeps(posts: Database) -> None:
    sleeper = posts.connect(user=roles.APPLIER)
    sleeper.execute('LISTEN "inturn.ready"')
    sleeper.execute("SELECT inturn.announce_sleep('{posts}')")
    arrive(posts, "x", "a")
    (notified,) = sleeper.notifies(timeout=30, stop_after=1)
    assert notified.payload == "posts"


def test_p6_arrival_a_caller_never_waits_for_an_applier_or_an_operator(posts: Database) -> None:
    appended(posts, "x", "hang")
    posts.execute("INSERT INTO app.gate VALUES ('x')")
    gate, turn, operator = posts.session(), posts.session(), posts.session()
    gate.execute("SELECT FROM app.gate FOR UPDATE")
    running = turn.begin("SELECT inturn.apply_batch('posts', '-infinity', 1, 'me')")
    assert turn.wait_blocked() == [gate.pid]
    operator.execute("SELECT FROM inturn.key_sequence WHERE key = 'x' FOR UPDATE")
    assert unblocked(posts, posts.session(), APPEND, ["x", "b"]) == [(None,)]
    gate.rollback()
    running.result()


def test_p6_arrival_nobody_waits_for_a_caller_for_whom_the_trigger_of_replicas_fires(posts: Database) -> None:
    """As of a subscription, whose table has a trigger that appends; or once all triggers were enabled."""
    appended(posts, "x", "before")  # a pass has been, and left a row
    able = "ALTER TABLE inturn.intake ENABLE {} TRIGGER take_replicated"
    names = ["before"]
    for kind, setting in (
        ("", "SET lock_timeout = 0"),
        ("REPLICA", "SET session_replication_role = replica"),
    ):
        posts.execute(able.format(kind))
        caller, other, passing = posts.session(user=roles.OWNER), posts.session(), posts.session()
        caller.execute(setting)
        for session, name in ((caller, "open"), (other, "committed")):
            assert unblocked(posts, session, APPEND, ["x", name]) == [(None,)]
        other.commit()
        assert unblocked(posts, passing, "SELECT inturn._number_arrivals(%s)", [["posts"]]) == [(1,)]
        passing.commit()
        caller.commit()
        assert number(posts) == 1
        names += ["committed", "open"]
    assert numbered(posts, "x") == names


@pytest.mark.parametrize(
    ("arguments", "sqlstate"),
    [
        ("'posts', 'x', 'a', seq => 1", "IT007"),
        ("'posts', '', 'a'", "IT002"),
        ("'posts', NULL, 'a'", "IT002"),
        ("'posts', repeat('x', 513), 'a'", "IT002"),
        ("'posts', 'x', ''", "IT004"),
        ("""'posts', 'x', 'a', '"{\\"a\\": 1}"'""", "IT003"),
        ("'posts', 'x', 'a', to_jsonb(repeat('x', 2000000))", "IT003"),
        ("'posts', 'x', 'a', idempotency_key => ''", "IT005"),
        ("'post', 'x', 'a'", "IT001"),
    ],
)
def test_p1_arrival_what_cannot_be_appended_is_refused_and_leaves_nothing(
    posts: Database, arguments: str, sqlstate: str
) -> None:
    assert refusal(posts, f"SELECT inturn.append({arguments})").sqlstate == sqlstate
    assert posts.value("SELECT count(*) FROM inturn.intake") == 0


def test_p1_arrival_a_pass_outside_read_committed_is_refused(posts: Database) -> None:
    session = posts.session()
    session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    arrive(posts, "x", "a")
    with pytest.raises(psycopg.Error) as caught:
        number(session)
    assert caught.value.sqlstate == "IT031"
    session.rollback()


def test_p1_arrival_many_at_once_by_function_view_and_copy(posts: Database) -> None:
    rows: list[tuple[Any, ...]] = posts.execute(
        "SELECT inturn.append_many('posts', '{y,x,y}', '{a,b,c}', NULL, '{1,2,3}')"
    )
    assert rows == [([None, None, None],)]
    returned = posts.execute(
        "INSERT INTO inturn.outbox (topic, key, name, payload) VALUES ('posts', 'x', 'd', '{}') RETURNING seq"
    )
    assert returned == [(None,)]
    caller = posts.connect(user=roles.CALLER)
    with caller.cursor().copy("COPY inturn.outbox (topic, key, name, payload) FROM STDIN") as copy:
        copy.write_row(("posts", "x", "e", "{}"))
    assert number(posts) == 5
    assert (numbered(posts, "x"), numbered(posts, "y")) == (["b", "d", "e"], ["a", "c"])


def test_p1_arrival_an_operator_replays_at_once_and_the_key_is_woken(posts: Database) -> None:
    appended(posts, "x", "a")
    posts.execute("CALL inturn.apply()")
    arrive(posts, "x", "b")
    after = posts.value("SELECT after FROM inturn.replay('posts', 'x', 1, 'once more')")
    assert after == {"seq": 2, "name": "a"}
    posts.execute("CALL inturn.apply()")
    assert [n for (n,) in posts.execute("SELECT name FROM app.witness ORDER BY id")] == ["a", "a", "b"]


@dataclass(frozen=True)
class _Done:
    """An append: when it began, and when its commit had returned, by the process's clock."""

    name: str
    began: int
    ended: int


def _call(posts: Database, who: int, done: list[_Done]) -> None:
    connection = posts.connect(user=roles.CALLER)
    for n in range(100):
        key, name = "xyz"[n % 3], f"{who} {n}"
        began = time.monotonic_ns()
        with connection.transaction():
            connection.execute(APPEND, [key, name])
            if n % 7 == who % 7:
                connection.execute(APPEND, [key, f"{name} too"])
        done.append(_Done(name, began, time.monotonic_ns()))


def _apply_until(posts: Database, over: threading.Event) -> None:
    """Apply in a session that is ended again and again."""
    while not over.is_set():
        with suppress(psycopg.OperationalError), posts.connect(pooled=True, user=roles.APPLIER) as session:
            while not over.is_set():
                session.execute("CALL inturn.apply('{posts}', 0.05)")


def test_p1_arrival_real_time_order_of_a_crowd(posts: Database) -> None:
    """With passes so small that they make plans all the time."""
    replace_in(posts, "_number_arrivals", ("50000", "3"))
    replace_in(posts, "_plan_arrivals", ("5000", "2"))
    done: list[_Done] = []
    over = threading.Event()
    callers = [threading.Thread(target=_call, args=(posts, who, done)) for who in range(8)]
    appliers = [threading.Thread(target=_apply_until, args=(posts, over)) for _ in range(2)]
    for thread in (*callers, *appliers):
        thread.start()
    while any(caller.is_alive() for caller in callers):
        posts.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE query LIKE 'CALL%%' AND datname = %s ORDER BY random() LIMIT 1",
            [posts.name],
        )
        for caller in callers:
            caller.join(0.05)
    over.set()
    for thread in appliers:
        thread.join()
    posts.execute("CALL inturn.apply('{posts}')")
    by_name = {each.name: each for each in done}
    assert len(by_name) == 800
    for key in "xyz":
        names = numbered(posts, key)
        for name, after in itertools.pairwise(names):
            if after.endswith("too"):
                assert names.index(after.removesuffix(" too")) < names.index(after), name
        order = [by_name[name] for name in names if not name.endswith("too")]
        # No later one had ended when an earlier one began.
        ended = list(itertools.accumulate((each.ended for each in reversed(order)), min))[::-1]
        for each, earliest in zip(order, ended[1:], strict=False):
            assert earliest > each.began, each
    applied = posts.execute("SELECT key, name FROM app.witness ORDER BY key, id")
    logged = posts.execute("SELECT key, name FROM inturn.command_log WHERE topic = 'posts' ORDER BY key, seq")
    assert applied == logged
    assert posts.execute("SELECT * FROM inturn.verify('posts')") == []
