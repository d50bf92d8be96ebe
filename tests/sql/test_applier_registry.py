"""Who applies: what appliers say of themselves, what they do now, and how it shows that one is gone."""

from __future__ import annotations

import re
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.database import Database, set_revision, until
from support.logins import connect_as
from support.process import inturn_apply
from support.race import unblocked
from support.roles import APPLIER, OWNER
from support.shop import append, append_keys, at_work, gate_shut, open_shop, wait_at_gate

from inturn.applier import pacing
from inturn.schema import HEAD
from inturn.schema.errors import SchemaMismatch

SAY = f"SELECT inturn.announce_applier(%s, '{{orders}}', 'here', 1, '{HEAD}')"


def listed(database: Database, *columns: str) -> list[tuple[Any, ...]]:
    return database.execute(f"SELECT {', '.join(columns)} FROM inturn.list_appliers()")


def wait_listed(database: Database, condition: str, count: int = 1) -> None:
    until(
        lambda: database.value(f"SELECT count(*) FROM inturn.list_appliers() WHERE {condition}") == count,
        condition,
    )


def test_a_worker_is_listed_while_it_lives_and_gone_when_it_was_killed(database: Database) -> None:
    open_shop(database)
    with inturn_apply(database.dsn, "--workers", "2") as process:
        wait_listed(database, "alive AND doing = 'idle'", 2)
        rows = listed(database, "applier", "topics", "host", "pid", "revision", "key")
        name, pid, host = rows[0][0].removesuffix(":1"), rows[0][3], socket.gethostname()
        assert re.fullmatch(rf"{re.escape(host)}:{pid}-[0-9a-f]{{6}}", name)
        assert rows == [(f"{name}:{n}", ["shop"], host, pid, HEAD, None) for n in (1, 2)]
        backends = {backend for (backend,) in listed(database, "backend_pid")}
        connected = (
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'inturn apply'"
            " AND datname = current_database() AND query NOT LIKE 'LISTEN%'"
        )
        # The connection by which it started ends, and the one that listens says so, a moment later.
        until(lambda: {pid for (pid,) in database.execute(connected)} == backends, "no other session")
        process.kill()
        wait_listed(database, "NOT alive AND doing = 'gone'", 2)
        assert listed(database, "since = seen_at") == [(True,), (True,)]


def test_containers_of_one_name_whose_processes_have_one_number_are_told_apart(database: Database) -> None:
    open_shop(database)
    box = "support.container:applier"
    with inturn_apply(database.dsn, app=box) as first, inturn_apply(database.dsn, app=box) as second:
        wait_listed(database, "alive AND host = 'box' AND pid = 1", 2)
        for (name,) in listed(database, "applier"):
            assert database.value("SELECT inturn._has_others('shop', %s)", [name])
        serving = "SELECT value FROM inturn.topic_metrics() WHERE metric = 'inturn_appliers'"
        assert database.value(serving) == 2
        first.send(signal.SIGTERM)
        assert first.exit_code() == 0
        wait_listed(database, "alive", 1)
        second.send(signal.SIGTERM)
        assert second.exit_code() == 0


def test_a_worker_is_listed_with_the_key_that_it_has_in_hand(database: Database) -> None:
    open_shop(database)
    append(database, "a", "insert")
    with gate_shut(database) as keeper, at_work(database, max_keys=1):
        wait_listed(database, "doing = 'idle'")
        append_keys(database, 3, prefix="early")
        append(database, "b", "insert", "before", "insert")
        (backend,) = wait_at_gate(database)
        row = listed(database, "doing", "backend_pid", "topic", "key", "seq", "waits_for")
        assert row[0][:5] == ("applying", backend, "shop", "b", 1)
        assert f"(backend {keeper.pid} of " in row[0][5]
        keeper.rollback()
        wait_listed(database, "doing = 'idle' AND key IS NULL AND waits_for IS NULL")


def test_a_handler_outside_the_database_is_said_to_be(database: Database) -> None:
    session = database.session()
    session.execute("SELECT inturn.announce_applier('me', '{orders}', 'here', 1, '0001')")
    session.commit()
    database.execute("SELECT inturn.create_topic('orders')")
    database.execute("SELECT inturn.append('orders', 'a', 'insert')")
    session.execute("SELECT * FROM inturn.claim('orders')")
    assert listed(database, "doing", "key", "waits_for") == [
        ("applying", "a", "its own code, outside the database")
    ]


def test_a_worker_goes_on_saying_that_it_is_there(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacing, "CHOOSE_SECONDS", 0.1)
    open_shop(database)
    with at_work(database):
        wait_listed(database, "alive")
        ((started_at, seen_at),) = listed(database, "started_at", "seen_at")
        wait_listed(database, f"seen_at > '{seen_at}'")
        database.execute("SELECT inturn.create_topic('later', 'sql:app.apply')")
        wait_listed(database, "topics = '{later,shop}'")
        assert listed(database, "started_at") == [(started_at,)]
        until(
            lambda: database.execute("SELECT pg_terminate_backend(backend_pid, 10000) FROM inturn.applier"),
            "ended",
        )
        wait_listed(database, f"alive AND started_at = '{started_at}'")


def test_a_worker_whose_schema_changes_ends_and_says_so(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacing, "CHOOSE_SECONDS", 0.1)
    open_shop(database)
    with at_work(database) as fleet:
        wait_listed(database, "alive")
        set_revision(database, "9999")
        assert fleet.wait(60)
        assert isinstance(fleet.end(0).error, SchemaMismatch)
    wait_listed(database, "NOT alive")  # the server takes a moment to end a session that was closed
    assert listed(database, "revision") == [(HEAD,)]


@pytest.mark.parametrize("missing", ["announce_applier", "applier"])
def test_an_older_schema_that_knows_no_registry_is_refused_as_such(database: Database, missing: str) -> None:
    kind = "FUNCTION" if missing == "announce_applier" else "TABLE"
    database.execute(f"DROP {kind} inturn.{missing} CASCADE")
    set_revision(database, "0000")
    with inturn_apply(database.dsn, app=None) as process:
        assert process.exit_code() == 5
        assert "older than" in process.err
        assert len(process.err.splitlines()) == 1


def test_a_sql_applier_is_alive_during_its_call_only(witness: Database) -> None:
    witness.execute("INSERT INTO app.gate VALUES ('a')")
    keeper, applier = witness.session(), witness.session(autocommit=True)
    keeper.execute("SELECT FROM app.gate FOR UPDATE")
    witness.execute("SELECT inturn.append('orders', 'a', 'hang')")
    running = applier.begin("CALL inturn.apply()")
    applier.wait_blocked()
    columns = ("applier", "topics", "host", "pid", "revision", "alive", "doing", "key")
    told = (f"sql:{applier.pid}", ["orders"], "database session", None, HEAD)
    assert listed(witness, *columns) == [(*told, True, "applying", "a")]
    witness.execute("UPDATE inturn.applier SET seen_at = seen_at - interval '1 ms'")
    keeper.rollback()
    running.result()
    assert listed(witness, *columns) == [(*told, False, "gone", None)]
    # Whatever else the session does is no applying.
    keeper.execute("SELECT FROM app.gate FOR UPDATE")
    running = applier.begin("SELECT FROM app.gate FOR UPDATE")
    applier.wait_blocked()
    assert listed(witness, "alive") == [(False,)]
    keeper.rollback()
    running.result()


def test_one_that_idles_unseen_is_not_alive_and_one_behind_a_pooler_by_its_word(database: Database) -> None:
    session = database.session(autocommit=True)
    session.execute("SELECT inturn.announce_applier('direct', '{}', 'here', 1, '0001')")
    session.execute("SELECT inturn.announce_applier('pooled', '{}', 'here', 1, '0001', true)")
    alive = ("applier", "alive")
    assert listed(database, *alive) == [("direct", True), ("pooled", True)]
    database.execute("UPDATE inturn.applier SET seen_at = seen_at - interval '16 seconds'")
    assert listed(database, *alive) == [("direct", False), ("pooled", False)]
    session.execute("BEGIN; SELECT 1")
    assert listed(database, *alive) == [("direct", True), ("pooled", False)]
    session.execute("COMMIT")
    session.execute("SELECT inturn.announce_applier('pooled', '{}', 'here', 1, '0001', true)")
    session.kill()
    assert listed(database, *alive) == [("pooled", True), ("direct", False)]


def test_a_session_of_another_database_is_no_applier_of_a_copy_of_it(database: Database) -> None:
    """A dump has the entries too, and its original may go on beside it, on the same server."""
    database.execute("SELECT inturn.create_topic('orders')")
    database.execute(SAY, ["copied"])
    metrics = "SELECT sum(value) FROM inturn.topic_metrics() WHERE metric = 'inturn_appliers'"
    for name, is_alive in (("postgres", False), (database.name, True)):
        with database.server.connect(name) as session:
            session.execute("BEGIN")
            database.administer(f"""
                UPDATE inturn.applier SET (backend_pid, backend_start, seen_at) = (
                    SELECT pid, backend_start, now() - interval '1 hour' FROM pg_stat_activity
                    WHERE pid = {session.info.backend_pid})""")
            assert listed(database, "alive") == [(is_alive,)]
            assert database.value(metrics) == int(is_alive)
            careful = database.value("SELECT inturn._careful_keys('{orders}', 'another', 20)")
            assert careful == [0 if is_alive else 20]
            database.execute("UPDATE inturn.applier SET ended = false")


def test_a_start_looks_for_the_leases_of_all_that_are_gone_at_once_and_for_none_of_long_ago(
    database: Database,
) -> None:
    """A held snapshot keeps millions that are over, and a host that ends takes many appliers along."""
    database.execute("SELECT inturn.create_topic('orders')")
    for name in ("a", "b", "c", "d"):
        database.execute(SAY, [name])
    database.execute("UPDATE inturn.applier SET backend_start = now() - interval '1 day'")  # they are gone
    database.execute("""
        INSERT INTO inturn.key_mark (topic, key, epoch, claimed_by, lease_until)
        SELECT 'orders', 'k' || n, 0, 'another', now() - (n % 2) * interval '1 hour'
        FROM generate_series(1, 400) n
    """)
    counter = "SELECT pg_stat_get_xact_tuples_returned('inturn.key_mark_leased'::regclass)"
    with database.connect(user=OWNER, autocommit=False) as connection:
        ((careful,),) = connection.execute("SELECT inturn._careful_keys('{orders}', 'me', 20)").fetchall()
        ((read,),) = connection.execute(counter).fetchall()
        connection.rollback()
    assert (careful, read) == ([20], 200)
    for name in ("a", "b", "c", "d"):
        database.execute(
            "INSERT INTO inturn.key_mark (topic, key, epoch, claimed_by, lease_until)"
            " VALUES ('orders', %s, 0, %s, now())",
            [name, name],
        )
    assert database.value("SELECT inturn._careful_keys('{orders}', 'me', 20)") == [0], "each took one alone"


def test_a_name_that_comes_back_later_is_another_applier(database: Database) -> None:
    first, second = database.session(autocommit=True), database.session(autocommit=True)
    first.execute(SAY, ["me"])
    started_at = database.value("SELECT started_at FROM inturn.applier")
    second.execute(SAY, ["me"])
    assert database.execute("SELECT started_at, backend_pid FROM inturn.applier") == [
        (started_at, second.pid)
    ]
    database.execute("UPDATE inturn.applier SET seen_at = seen_at - interval '16 seconds'")
    second.execute(SAY, ["me"])
    assert database.value("SELECT started_at FROM inturn.applier") == started_at
    database.execute("UPDATE inturn.applier SET seen_at = seen_at - interval '16 seconds'")
    first.execute(SAY, ["me"])
    assert database.value("SELECT started_at FROM inturn.applier") > started_at


def test_who_was_not_seen_for_a_day_is_forgotten_and_nobody_waits_for_that(database: Database) -> None:
    database.execute(SAY, ["old"])
    database.execute(SAY, ["older"])
    database.execute("UPDATE inturn.applier SET seen_at = seen_at - interval '25 hours'")
    again, forgetting = database.session(user=OWNER), database.session()
    again.execute(SAY, ["me"])  # not committed: has deleted both
    again.rollback()
    again.execute("SELECT FROM inturn.applier WHERE applier = 'old' FOR UPDATE")
    forgetting.begin(SAY, ["me"]).result(60)
    forgetting.commit()
    assert database.execute("SELECT applier FROM inturn.applier ORDER BY 1") == [("me",), ("old",)]


def test_many_appliers_announce_themselves_at_once(database: Database) -> None:
    def announce(number: int) -> None:
        with database.connect(user=OWNER) as connection:
            for _ in range(30):
                connection.execute(SAY, [f"w{number}"])
                connection.execute(
                    "UPDATE inturn.applier SET seen_at = '2000-01-01' WHERE applier = %s", [f"w{number}"]
                )

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(announce, number) for number in range(8)]:
            done.result()


def test_an_operator_sees_what_a_superuser_sees(witness: Database) -> None:
    applier = connect_as(witness, "inturn_applier")
    applier.execute(SAY, ["me"])
    with connect_as(witness, "inturn_operator") as operator:
        seen = operator.execute("SELECT * FROM inturn.list_appliers()").fetchall()
    assert seen == witness.execute("SELECT * FROM inturn.list_appliers()")
    assert seen[0][8:10] == (True, "idle")


def test_an_owner_who_may_not_see_other_sessions_still_tells_who_is_there(witness: Database) -> None:
    """Without pg_monitor: no states and no queries of others, but whose session it is."""
    owner = f"{witness.name}_owner"
    witness.execute(f"CREATE ROLE {owner}; GRANT inturn_operator TO {owner}")
    for function in ("list_appliers()", "why(text, text)"):
        witness.administer(f"ALTER FUNCTION inturn.{function} OWNER TO {owner}")
    witness.administer(f"""
        GRANT ALL ON ALL TABLES IN SCHEMA inturn TO {owner};
        GRANT EXECUTE ON ALL ROUTINES IN SCHEMA inturn TO {owner};
        SELECT inturn.append('orders', 'a', 'insert');
        SELECT inturn.append('orders', 'b', 'insert');
    """)
    session = witness.session(application_name="inturn apply", user=APPLIER)
    session.execute(SAY, ["me"])
    session.commit()
    why = "SELECT cause FROM inturn.why('orders', 'a')"
    assert witness.value(why) == "queued"
    session.execute("SELECT * FROM inturn.claim('orders', max_keys => 1)")
    assert listed(witness, "alive", "doing", "key") == [(True, "applying", "a")]
    assert witness.value(why) == "applying"
    session.kill()
    assert listed(witness, "alive") == [(False,)]
    assert witness.value(why) == "no_applier"
    witness.administer(f"DROP OWNED BY {owner}")


def test_an_applier_that_names_a_topic_twice_sleeps_as_well(database: Database) -> None:
    open_shop(database)
    database.execute("SELECT inturn.announce_sleep('{shop,other,shop}')")
    assert database.execute("SELECT topic FROM inturn.listener ORDER BY 1") == [("other",), ("shop",)]


def test_an_applier_that_does_not_commit_its_sleep_keeps_no_other_one_from_sleeping(
    database: Database,
) -> None:
    """As a client that is notified in a transaction that it leaves open; also for a topic's first sleep."""
    announce = "SELECT inturn.announce_sleep('{orders}')"
    for wakes_at in ([], [(True,)]):
        first, second = database.session(), database.session()
        first.execute(announce)
        unblocked(database, second, announce, [])
        second.commit()
        rows = "SELECT asleep_until < now() FROM inturn.listener"
        assert database.execute(rows) == wakes_at
        first.commit()
        assert database.execute(rows) == [(False,)]
        database.execute("UPDATE inturn.listener SET asleep_until = now() - interval '1 h'")
