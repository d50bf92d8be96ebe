"""P1 on arrival: what a numbering pass takes, leaves behind, and may lose; and its guards, each taken out."""

from __future__ import annotations

import functools
from collections.abc import Callable

import psycopg
import pytest
from support.arrivals import APPEND, appended, arrive, number, numbered
from support.database import Database, until
from support.race import blocked, replace_in, unblocked
from support.refusal import refusal
from support.roles import OWNER
from support.shop import at_work

from inturn.applier import Applier, pacing


def test_p1_arrival_a_transaction_that_began_early_and_appends_late_comes_late(posts: Database) -> None:
    """The order is that of the appends, never that of the transactions' numbers."""
    early = posts.session()
    early.execute("SELECT pg_current_xact_id()")
    for name in "abc":
        arrive(posts, "x", name)
    for name in "de":
        arrive(early, "x", name)
    early.commit()
    # However small the part that a pass takes.
    assert [number(posts, 1) for _ in range(6)] == [1, 1, 1, 1, 1, 0]
    assert numbered(posts, "x") == ["a", "b", "c", "d", "e"]


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


def test_p1_arrival_a_server_that_does_not_tell_which_it_is_numbers_all_the_same(posts: Database) -> None:
    """As managed ones may: what a pass has seen could be another server's, so each looks at everything."""
    posts.administer("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    open_still = posts.session()
    arrive(open_still, "x", "a")
    arrive(posts, "x", "b")
    assert number(posts) == 1
    open_still.commit()
    arrive(posts, "x", "c")
    assert [number(posts), number(posts)] == [2, 0]
    assert numbered(posts, "x") == ["b", "a", "c"]


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


def test_p1_arrival_passes_over_a_backlog_read_it_twice_and_then_their_part_each(posts: Database) -> None:
    """Not all of it each time, to find the lowest ids: a week of it would take ever longer passes."""
    replace_in(posts, "_plan_arrivals", ("5000", "10"))
    posts.execute("SELECT inturn.append('posts', 'x', n::text) FROM generate_series(1, 1000) n")
    counter = "SELECT pg_stat_get_xact_tuples_returned('inturn.intake_pkey'::regclass)"
    taken: list[int] = []
    read: list[int] = []
    with posts.connect(user=OWNER, autocommit=False) as session:
        while not taken or taken[-1]:
            before, numbered_now, after = (
                session.execute(query).fetchall()[0][0]
                for query in (counter, "SELECT numbered FROM inturn._number_topic('posts', 20)", counter)
            )
            taken.append(numbered_now)
            read.append(after - before)
            session.commit()
    assert (max(taken), len(taken) < 110) == (20, True)
    assert (min(read[:2]) >= 980, max(read[:2]) < 1100, max(read[2:]) < 60) == (True, True, True)
    assert numbered(posts, "x") == [str(n) for n in range(1, 1001)]


def test_p1_arrival_what_commits_while_a_backlog_is_numbered_comes_after_it(posts: Database) -> None:
    late = posts.session()
    arrive(late, "x", "late")
    for name in "abcd":
        arrive(posts, "x", name)
    assert [number(posts, 1) for _ in range(2)] == [1, 1]
    late.commit()
    arrive(posts, "x", "after")
    assert [number(posts, 1) for _ in range(5)] == [1, 1, 1, 1, 0]
    assert numbered(posts, "x") == ["a", "b", "c", "d", "late", "after"]


def test_p1_arrival_what_an_applier_appends_after_it_has_planned_is_not_lost(posts: Database) -> None:
    applier = posts.session()
    applier.execute("SELECT pg_current_xact_id()")
    for name in "abcd":
        arrive(posts, "x", name)
    assert [number(applier, 1) for _ in range(2)] == [1, 1]
    arrive(applier, "x", "e")
    applier.commit()
    assert [number(posts, 1) for _ in range(4)] == [1, 1, 1, 0]
    assert numbered(posts, "x") == ["a", "b", "c", "d", "e"]


def test_p1_arrival_a_backlog_of_another_servers_transactions_is_numbered_in_order(posts: Database) -> None:
    """It came by logical replication: what is seen cannot be told from their numbers."""
    for name in "abcd":
        arrive(posts, "x", name)
    posts.execute("UPDATE inturn.intake SET xid = '800000000' WHERE name <> 'c'")
    assert [number(posts, 1) for _ in range(5)] == [1, 1, 1, 1, 0]
    assert numbered(posts, "x") == ["a", "b", "c", "d"]


def test_p1_arrival_what_is_replicated_during_a_pass_is_looked_at(posts: Database) -> None:
    """The numbers of its transactions tell nothing here: the next pass has to look at everything."""
    appended(posts, "x", "a")
    subscription, passing = posts.session(user=OWNER), posts.session()
    subscription.execute(
        "INSERT INTO inturn.intake (topic, key, xid, name, payload) VALUES ('posts', 'x', '5', 'b', '{}');"
        "DELETE FROM inturn.arrival_pass"  # as _take_replicated does
    )
    arrive(posts, "x", "c")
    running = passing.begin("SELECT numbered FROM inturn._number_topic('posts', 10)")
    assert passing.wait_blocked() == [subscription.pid]
    subscription.commit()
    assert running.result() == [(1,)]
    passing.commit()
    assert number(posts) == 1
    assert numbered(posts, "x") == ["a", "c", "b"]


def test_p1_arrival_a_pass_takes_no_more_octets_than_a_claim(posts: Database) -> None:
    posts.execute("SET inturn.max_claim_octets = 1048576")
    posts.execute(
        "SELECT inturn.append('posts', 'k' || n, 'a', to_jsonb(long)) FROM generate_series(1, 40) n,"
        " (SELECT string_agg(md5(i::text), '') AS long FROM generate_series(1, 1800) i) l"
    )
    assert 10 < number(posts) < 25
    assert posts.value("SELECT inturn._number_arrivals('{posts}')") > 0
    posts.execute("CALL inturn.apply()")
    assert posts.value("SELECT count(*) FROM app.witness") == 40


def test_p1_arrival_a_drain_numbers_what_comes_after_a_full_batch_of_a_locked_key(posts: Database) -> None:
    replace_in(posts, "_number_arrivals", ("50000", "2"))
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


@pytest.mark.parametrize("state", ["53100", "55P03"])
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


#: What takes the place of a guard that cannot be left out.
INSTEAD = {
    r"(?<=last\.seen := )last\.planned": "pg_current_snapshot()",
    r"(?<=ARRAY\[)last\.planned_by(?=\])": "'3'::xid8",
}


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
            "_next_arrivals",
            r"ORDER BY a\.id (?=LIMIT)",
            id="lowest_ids_first",
        ),
        pytest.param(
            test_p1_arrival_what_commits_while_a_backlog_is_numbered_comes_after_it,
            "_end_part",
            r"(?<=last\.seen := )last\.planned",
            id="a_plan_ends_where_it_saw",
        ),
        pytest.param(
            test_p1_arrival_what_an_applier_appends_after_it_has_planned_is_not_lost,
            "_end_part",
            r"(?<=ARRAY\[)last\.planned_by(?=\])",
            id="a_plans_own",
        ),
        pytest.param(
            test_p1_arrival_what_is_replicated_during_a_pass_is_looked_at,
            "_save_arrival_pass",
            r"IF NOT FOUND.*?END IF;",
            id="what_is_forgotten_stays_so",
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
    replace_in(posts, function, (pattern, INSTEAD.get(pattern, "NULL;" if pattern.endswith(";") else "")))
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
