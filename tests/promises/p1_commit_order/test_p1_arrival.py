"""P1 where numbers are given on arrival: what was committed before another append began comes first."""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from support import roles
from support.arrivals import APPEND, appended, arrive, number, numbered
from support.database import Database, until
from support.own_server import own_database
from support.race import blocked, replace_in, unblocked
from support.refusal import refusal
from support.server import Server
from support.shop import at_work

from inturn.applier import Applier, pacing


@pytest.fixture
def posts(witness: Database) -> Database:
    """The orders, and topic `posts`, which numbers on arrival and has the same target."""
    witness.execute("SELECT inturn.create_topic('posts', 'sql:app.apply_order', numbering => 'arrival')")
    return witness


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


def test_p1_arrival_a_transaction_that_began_early_and_appends_late_comes_late(posts: Database) -> None:
    """The order is that of the appends, never that of the transactions' numbers."""
    early = posts.session()
    early.execute("SELECT pg_current_xact_id()")
    for name in "abc":
        arrive(posts, "x", name)
    arrive(early, "x", "d")
    early.commit()
    # However small the part that a pass takes.
    assert [number(posts, 1) for _ in range(5)] == [1, 1, 1, 1, 0]
    assert numbered(posts, "x") == ["a", "b", "c", "d"]


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


def test_p1_arrival_what_an_applier_appends_after_its_pass_is_not_lost(posts: Database) -> None:
    """The pass's own transaction: nothing says that what it saw has all of it."""
    session = posts.session()
    # So that its number is below those that a snapshot calls still to come.
    session.execute("SELECT pg_current_xact_id()")
    arrive(posts, "x", "a")
    assert number(session) == 1
    arrive(session, "x", "b")
    session.commit()
    assert number(posts) == 1
    for again in range(2):
        assert number(session) == 0
        arrive(session, "x", f"c{again}")
        assert number(session) == 1
        arrive(session, "x", f"d{again}")
        session.commit()
        assert number(posts) == 1
    assert numbered(posts, "x") == ["a", "b", "c0", "d0", "c1", "d1"]


def test_p1_arrival_one_pass_runs_at_a_time_and_nobody_waits_for_it(posts: Database) -> None:
    arrive(posts, "x", "a")
    number(posts)
    first, second = posts.session(), posts.session()
    arrive(posts, "x", "b")
    assert number(first) == 1
    arrive(posts, "x", "c")
    running = second.begin("SELECT inturn._number_arrivals('{posts}')")
    assert not blocked(posts, second, running)
    assert running.result() == [(0,)]
    assert unblocked(posts, posts.session(), APPEND, ["x", "d"]) == [(None,)]
    first.commit()
    second.commit()
    assert number(posts) == 1
    posts.execute("DELETE FROM inturn.arrival_pass")


def test_p1_arrival_the_very_first_passes_of_two_sessions_number_once(posts: Database) -> None:
    arrive(posts, "x", "a")
    first, second = posts.session(), posts.session()
    assert number(first) == 1
    arrive(first, "x", "b")
    assert number(first) == 1
    running = second.begin("SELECT inturn._number_arrivals('{posts}')")
    assert not blocked(posts, second, running)
    assert running.result() == [(0,)]
    second.commit()
    arrive(posts, "x", "c")
    first.commit()
    assert number(posts) == 1
    assert numbered(posts, "x") == ["a", "b", "c"]
    assert posts.value("SELECT count(*) FROM inturn.arrival_pass") == 1


def test_p1_arrival_a_second_pass_never_numbers_what_the_first_took(posts: Database) -> None:
    """However it came to be at work beside it: what a pass has not deleted itself, it does not log."""
    replace_in(posts, "_number_topic", (r"IF NOT pg_try_advisory_xact_lock.*?END IF;", ""))
    replace_in(posts, "_lock_arrived_keys", (" FOR UPDATE SKIP LOCKED", ""))
    replace_in(posts, "_save_arrival_pass", (r"INSERT INTO.*?;", "NULL;"))
    appended(posts, "x", "a")
    arrive(posts, "x", "b")
    first, second = posts.session(), posts.session()
    assert number(first) == 1
    running = second.begin("SELECT numbered FROM inturn._number_topic('posts', 10)")
    assert second.wait_blocked() == [first.pid]
    first.commit()
    assert running.result() == [(0,)]
    second.commit()
    assert numbered(posts, "x") == ["a", "b"]


def test_p1_arrival_what_an_applier_appends_is_not_lost_after_a_pass_that_took_a_part(
    posts: Database,
) -> None:
    applier = posts.session()
    applier.execute("SELECT pg_current_xact_id()")
    arrive(posts, "x", "a")
    assert number(applier) == 1
    for name in "bcd":
        arrive(applier, "x", name)
    applier.commit()
    assert [number(posts, 1) for _ in range(4)] == [1, 1, 1, 0]
    assert numbered(posts, "x") == ["a", "b", "c", "d"]


def test_p1_arrival_a_pass_takes_no_more_octets_than_a_claim(posts: Database) -> None:
    posts.execute(
        "SELECT inturn.append('posts', 'k' || n, 'a', to_jsonb((SELECT string_agg(md5(n::text || i), '')"
        " FROM generate_series(1, 30000) i))) FROM generate_series(1, 40) n"
    )
    assert 10 < number(posts) < 25
    assert posts.value("SELECT inturn._number_arrivals('{posts}')") > 0
    posts.execute("CALL inturn.apply()")
    assert posts.value("SELECT count(*) FROM app.witness") == 40


def test_p1_arrival_a_drain_numbers_what_comes_after_a_full_batch_of_a_locked_key(posts: Database) -> None:
    replace_in(posts, "_number_arrivals", ("10000", "2"))
    appended(posts, "x", "a")
    operator = posts.session()
    operator.execute("SELECT FROM inturn.key_sequence WHERE key = 'x' FOR UPDATE")
    for name in "bcdef":
        arrive(posts, "x", name)
    arrive(posts, "y", "g")
    posts.execute("CALL inturn.apply()")
    assert posts.execute("SELECT key, name FROM app.witness ORDER BY id") == [("x", "a"), ("y", "g")]


@pytest.mark.needs_session("no notification comes through a pooler in transaction mode: appliers poll")
def test_p4_arrival_a_worker_that_is_notified_numbers_what_came(
    posts: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has announced its sleep, and nothing but a notification ends that."""
    for name in ("ANNOUNCED_SECONDS", "FIRST_POLL_SECONDS", "LAST_POLL_SECONDS"):
        monkeypatch.setattr(pacing, name, 3600.0)
    replace_in(posts, "announce_sleep", ("interval '2 seconds'", "interval '2 hours'"))
    with at_work(posts, Applier(), topics=["posts"]):
        until(lambda: posts.value("SELECT count(*) FROM inturn.listener"), "asleep")
        for n in range(5):
            arrive(posts, f"k{n}", "a")
            until(lambda: posts.value("SELECT count(*) FROM app.witness") == n + 1, "applied")  # noqa: B023


@pytest.mark.parametrize("end", ["kill", "rollback"])
def test_p1_arrival_a_pass_that_dies_leaves_everything_to_the_next(posts: Database, end: str) -> None:
    arrive(posts, "x", "a")
    number(posts)
    for name in "bc":
        arrive(posts, "x", name)
    dying = posts.session()
    assert number(dying) == 2
    getattr(dying, end)()
    arrive(posts, "x", "d")
    assert number(posts) == 3
    assert numbered(posts, "x") == ["a", "b", "c", "d"]


@pytest.mark.parametrize("limit", [1, 2, 10000])
def test_p1_arrival_a_locked_key_is_left_behind_and_costs_the_others_nothing(
    posts: Database, limit: int
) -> None:
    arrive(posts, "x", "a")
    number(posts)
    operator = posts.session()
    operator.execute("SELECT FROM inturn.key_sequence WHERE key = 'x' FOR UPDATE")
    for name in "bcd":
        arrive(posts, "x", name)
        arrive(posts, "y", name)
        _number_until(posts, limit, "y", name)
    assert (numbered(posts, "x"), numbered(posts, "y")) == (["a"], ["b", "c", "d"])
    arrive(posts, "x", "e")
    operator.rollback()
    _number_until(posts, limit, "x", "e")
    assert numbered(posts, "x") == ["a", "b", "c", "d", "e"]


def _number_until(posts: Database, limit: int, key: str, name: str) -> None:
    until(lambda: number(posts, limit) >= 0 and name in numbered(posts, key), f"{name} of {key}")


def test_p1_arrival_what_was_left_behind_comes_before_what_arrived_later(posts: Database) -> None:
    appended(posts, "x", "a")
    operator = posts.session()
    operator.execute("SELECT FROM inturn.key_sequence WHERE key = 'x' FOR UPDATE")
    arrive(posts, "x", "b")
    assert number(posts) == 0
    operator.rollback()
    arrive(posts, "x", "c")
    _number_until(posts, 10000, "x", "b")
    _number_until(posts, 10000, "x", "c")
    assert numbered(posts, "x") == ["a", "b", "c"]


def test_p5_arrival_a_key_whose_numbering_fails_costs_the_others_nothing(posts: Database) -> None:
    posts.execute("""
        CREATE FUNCTION app.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'nothing of % is logged', NEW.key; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON inturn.command_log FOR EACH ROW WHEN (NEW.key = 'bad')
        EXECUTE FUNCTION app.refuse();
        SELECT inturn.create_topic('others', 'sql:app.apply_order', numbering => 'arrival');
        SELECT inturn.append('others', 'x', 'insert');
    """)
    for name in "ab":
        for key in ("x", "bad", "y"):
            arrive(posts, key, name)
        posts.execute("CALL inturn.apply()")
        assert (numbered(posts, "x")[-1], numbered(posts, "y")[-1]) == (name, name)
    assert posts.value("SELECT count(*) FROM app.witness") == 5
    left = posts.execute("SELECT DISTINCT key, left_because FROM inturn.intake")
    assert left in (
        [("bad", "nothing of bad is logged (SQLSTATE P0001)")],
        # The second has not been tried yet.
        [("bad", "nothing of bad is logged (SQLSTATE P0001)"), ("bad", "locked")],
        [("bad", "locked"), ("bad", "nothing of bad is logged (SQLSTATE P0001)")],
    )
    posts.execute(
        "SELECT inturn.announce_applier('a', '{posts}', 'h', 1, version_num) FROM inturn.schema_version"
    )
    says = posts.value("SELECT says FROM inturn.why('posts', 'bad')")
    assert "numbering them fails: nothing of bad is logged" in says
    posts.execute("DROP TRIGGER refuse ON inturn.command_log")
    _number_until(posts, 10000, "bad", "b")
    assert numbered(posts, "bad") == ["a", "b"]


@pytest.mark.parametrize("state", ["40001", "40P01", "53100", "55P03"])
def test_p5_arrival_what_is_no_keys_fault_leaves_nothing_behind(posts: Database, state: str) -> None:
    posts.execute(f"""
        CREATE FUNCTION app.refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'no fault of %', NEW.key USING ERRCODE = '{state}'; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON inturn.command_log FOR EACH ROW EXECUTE FUNCTION app.refuse();
    """)
    arrive(posts, "x", "a")
    assert refusal(posts, "SELECT inturn._number_topic('posts', 10000)").sqlstate == state
    posts.execute("DROP TRIGGER refuse ON inturn.command_log")
    assert number(posts) == 1


@pytest.mark.parametrize(
    ("scene", "function", "pattern"),
    [
        pytest.param(
            test_p1_arrival_what_an_applier_appends_after_its_pass_is_not_lost,
            "_appeared",
            r"UNION SELECT pg_catalog\.unnest\(own\)(?=\))",
            id="its_own",
        ),
        pytest.param(
            test_p1_arrival_what_was_left_behind_comes_before_what_arrived_later,
            "_number_topic",
            r"UNION SELECT k\.key FROM unnest\(batch\.keys\) k \(key\) WHERE EXISTS \(.*?NULL\)(?=\);)",
            id="left_behind_first",
        ),
        pytest.param(
            test_p1_arrival_a_transaction_that_began_early_and_appends_late_comes_late,
            "_number_topic",
            r"ORDER BY a\.id (?=LIMIT)",
            id="lowest_ids_first",
        ),
        pytest.param(
            functools.partial(
                test_p1_arrival_a_locked_key_is_left_behind_and_costs_the_others_nothing, limit=10000
            ),
            "_number_topic",
            r"UPDATE inturn\.intake i SET left_because = 'locked' .*?;",
            id="locked_stay",
        ),
        pytest.param(
            test_p5_arrival_a_key_whose_numbering_fails_costs_the_others_nothing,
            "_append_batch",
            r"EXCEPTION WHEN OTHERS THEN.*(?=END\s+\$)",
            id="each_key_alone",
        ),
    ],
)
def test_p1_arrival_each_guard_is_needed(
    posts: Database, scene: Callable[[Database], None], function: str, pattern: str
) -> None:
    replace_in(posts, function, (pattern, "NULL;" if pattern.endswith(";") else ""))
    with pytest.raises((AssertionError, psycopg.errors.RaiseException)):
        scene(posts)


@pytest.mark.parametrize(
    "loss",
    [
        "DELETE FROM inturn.arrival_pass",
        # Of another server, as after a dump and a restore: its transaction ids mean nothing.
        "UPDATE inturn.arrival_pass SET cluster = 1, seen = '900000000:900000000:'",
        "UPDATE inturn.arrival_pass SET seen = '900000000:900000000:'",
        (
            "UPDATE inturn.arrival_pass SET cluster = 1, seen = '900000000:900000000:', pass = 1000;"
            "UPDATE inturn.intake SET xid = '800000000'"
        ),
    ],
)
def test_p1_arrival_what_the_last_pass_saw_may_be_lost(posts: Database, loss: str) -> None:
    arrive(posts, "x", "a")
    number(posts)
    for name in "bc":
        arrive(posts, "x", name)
    posts.execute(loss)
    for name in "de":
        arrive(posts, "x", name)
    assert number(posts) == 4
    arrive(posts, "x", "f")
    assert number(posts) == 1
    assert numbered(posts, "x") == ["a", "b", "c", "d", "e", "f"]


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
    sleeper = posts.connect()
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
    with posts.connect().cursor().copy("COPY inturn.outbox (topic, key, name, payload) FROM STDIN") as copy:
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
    connection = posts.connect()
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
