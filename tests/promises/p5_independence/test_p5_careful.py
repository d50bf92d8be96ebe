"""P5: who is careful, and for how long: keys are taken alone where one of them may have ended an applier."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psycopg
import pytest
from support import roles, shop
from support.database import Database, until
from support.key_hands import Connection
from support.lease_scenes import expire
from support.race import kill, replace_in
from support.roles import OWNER

from inturn.applier import Applier, Fleet, calls, pacing
from inturn.applier.inside import visits
from inturn.applier.inside.worker import Worker
from inturn.schema.version import HEAD

_APPLIED = "SELECT count(*) FROM app.witness WHERE key <> 'bad'"
_SLEEPS = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"
_BAD = "SELECT attempts, lost FROM inturn.key_cursor WHERE key = 'bad'"


@pytest.fixture
def topic(database: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    """Topic t, whose target writes a witness, and goes wrong as a command is named."""
    monkeypatch.setattr(pacing, "BATCH_SECONDS", 3600.0)  # on a busy machine few keys share a transaction
    database.execute("""
        CREATE SCHEMA app; GRANT USAGE ON SCHEMA app TO PUBLIC;
        CREATE TABLE app.witness (key text, seq bigint); GRANT INSERT ON app.witness TO PUBLIC;
        CREATE FUNCTION app.apply(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO app.witness VALUES (command.key, command.seq);
            CASE command.name
                WHEN 'cancel' THEN PERFORM pg_cancel_backend(pg_backend_pid()), pg_sleep(60);
                WHEN 'hang' THEN PERFORM pg_sleep(600);
                WHEN 'fail' THEN RAISE EXCEPTION 'refused';
                ELSE NULL;
            END CASE;
        END $$;
        SELECT inturn.create_topic('t', 'sql:app.apply', backoff_base => '1 hour', backoff_cap => '1 hour',
                                   max_attempts => 100);
    """)
    return database


def _append(database: Database, key: str, name: str = "do") -> None:
    database.execute("SELECT inturn.append('t', %s, %s)", [key, name])


def _call(database: Database, *, settings: str = "") -> None:
    with database.connect(user=roles.APPLIER) as session:
        session.execute(f"SET inturn.careful_keys = 20; {settings}")
        session.execute("CALL inturn.apply()")


def _careful(database: Database, *topics: str, applier: str = "sql:1") -> list[int]:
    """Return how many keys a call would take alone at first; it notes what it finds, as a call does."""
    with database.connect(user=roles.APPLIER) as session:
        row = session.execute("SELECT inturn._careful_keys(%s, %s, 20)", (list(topics), applier)).fetchone()
    assert row is not None
    return list(row[0])


def _retry(database: Database) -> None:
    """Make the bad key's next attempt due."""
    database.execute("UPDATE inturn.key_cursor SET ready_at = now() WHERE key = 'bad'")


def test_p5_a_call_is_careful_where_nobody_is_known(topic: Database) -> None:
    """As after a crash of the server, which empties the registry."""
    assert _careful(topic, "t", "other") == [20, 20]
    _append(topic, "k")
    _call(topic)
    assert _careful(topic, "t", "other") == [0, 20]
    topic.execute("DELETE FROM inturn.applier")
    assert _careful(topic, "t") == [20]


def test_p5_a_call_is_careful_once_after_one_that_has_died(topic: Database) -> None:
    _append(topic, "k")
    _call(topic)
    _append(topic, "bad", "hang")
    dying = topic.session(user=roles.APPLIER, autocommit=True)
    running = dying.begin("CALL inturn.apply()")
    until(lambda: topic.value(_SLEEPS, [dying.pid]), "its command hangs")
    assert _careful(topic, "t") == [0], "it is alive"
    kill(topic, dying, running)
    assert _careful(topic, "t") == [20]
    assert _careful(topic, "t") == [0], "that was noted"


def test_p5_a_call_is_careful_beside_one_that_is(topic: Database) -> None:
    """It may be about to die of the same key as the one before."""
    _append(topic, "bad", "hang")
    careful = topic.session(user=roles.APPLIER, autocommit=True)
    careful.execute("SET inturn.careful_keys = 20")
    running = careful.begin("CALL inturn.apply()")  # nobody is known
    until(lambda: topic.value(_SLEEPS, [careful.pid]), "its command hangs")
    assert _careful(topic, "t") == [20]
    topic.execute("SELECT pg_cancel_backend(%s)", [careful.pid])
    assert isinstance(running.exception(60), psycopg.errors.QueryCanceled)
    assert _careful(topic, "t") == [0], "it has said its end"


def test_p5_a_call_is_careful_after_one_of_its_session_that_an_error_has_ended(topic: Database) -> None:
    _append(topic, "k")
    _call(topic)
    _append(topic, "bad", "cancel")
    with topic.connect(user=roles.APPLIER) as session:
        name = f"sql:{session.info.backend_pid}"
        with pytest.raises(psycopg.errors.QueryCanceled):
            session.execute("CALL inturn.apply()")
        assert _careful(topic, "t", applier=name) == [20]


def test_p5_a_call_that_finds_nothing_forgets_no_death_before_it(topic: Database) -> None:
    """It has looked at no key: the next one that finds some is careful still."""
    _append(topic, "k")
    _call(topic)
    _append(topic, "bad", "cancel")
    with topic.connect(user=roles.APPLIER) as session:
        name = f"sql:{session.info.backend_pid}"
        with pytest.raises(psycopg.errors.QueryCanceled):
            session.execute("CALL inturn.apply()")
        topic.execute("SELECT inturn.pause('t', 'bad')")
        session.execute("CALL inturn.apply()")
        assert _careful(topic, "t", applier=name) == [20]


def test_p5_a_call_of_some_topics_forgets_no_death_for_the_others(topic: Database) -> None:
    announce = "SELECT inturn.announce_applier(%s, %s, 'host', %s, '0001')"
    # All of them are known otherwise.
    living = topic.session(user=roles.APPLIER, autocommit=True)
    with topic.connect(user=roles.APPLIER) as dying:
        dying.execute(announce, ["sql:dying", ["t", "u", "v"], 1])
        pid = dying.info.backend_pid
    until(
        lambda: not topic.value("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", [pid]), "it is gone"
    )
    living.execute(announce, ["sql:living", ["elsewhere", "t", "u", "v"], 2])
    assert _careful(topic, "elsewhere") == [0]
    assert _careful(topic, "v") == [20]
    assert _careful(topic, "v", "t") == [0, 20]
    assert _careful(topic, "t", "u", "v") == [0, 20, 0]
    assert _careful(topic, "t", "u", "v") == [0, 0, 0]


@pytest.mark.parametrize("end", ["a drain", "a stop"])
def test_p5_a_call_is_not_careful_after_an_inturn_apply_that_ended_as_it_should(
    topic: Database, end: str
) -> None:
    if end == "a drain":
        _append(topic, "k")
        fleet = Fleet(topic.applier_dsn, drain=True)  # which takes the first keys alone
        fleet.start()
        assert fleet.wait(60)
        assert fleet.end(10).commands == 1
    else:
        with shop.at_work(topic, Applier(), workers=2):
            _append(topic, "k")
            until(lambda: topic.value(_APPLIED), "at work")
    assert topic.value("SELECT bool_and(ended) FROM inturn.applier")
    assert _careful(topic, "t") == [0]


def _transactions(database: Database, keys: str, applier: Applier | None = None) -> int:
    """Append to five new keys and drain them as a process that has just started; return in how many."""
    for number in range(5):
        _append(database, f"{keys}{number}")
    fleet = Fleet(database.applier_dsn, applier, topics=["t"], drain=True)
    fleet.start()
    assert fleet.wait(60)
    assert fleet.end(10).commands == 5
    return int(
        database.value(
            "SELECT count(DISTINCT xmin::text) FROM app.witness WHERE starts_with(key, %s)", [keys]
        )
    )


def _gone(database: Database) -> None:
    """Announce an applier of the topic, and have it gone without a word."""
    with database.connect(user=roles.APPLIER) as dying:
        dying.execute("SELECT inturn.announce_applier('elsewhere:1:1', '{t}', 'elsewhere', 1, '0001')")
        pid = dying.info.backend_pid
    here = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
    until(lambda: not database.value(here, [pid]), "it is gone")


def test_p5_a_worker_that_starts_takes_keys_alone_where_another_may_have_died_of_one(
    topic: Database,
) -> None:
    assert _transactions(topic, "first-") == 5, "nobody is known"
    assert _transactions(topic, "after-a-good-end-") < 5
    _gone(topic)
    assert _transactions(topic, "after-a-death-") == 5
    assert _transactions(topic, "that-was-noted-") < 5


def _starting(connection: Connection, name: str, *topics: str) -> list[int] | None:
    """Announce an applier as the first one of a process; return how many keys it takes alone at first."""
    process = calls.appliers.Process(name, 1, HEAD)
    pid = connection.info.backend_pid
    call = calls.appliers.announce_applier("inturn", f"{name}:1:1", list(topics), process, pid, {}, 0, 20)
    return call.on(connection).careful


@pytest.mark.parametrize("death", ["one that served it", "all, in a crash of the server"])
def test_p5_every_process_that_starts_after_a_death_takes_keys_alone(topic: Database, death: str) -> None:
    """Until the first of them has got through: another would die of the same key again."""
    if death == "one that served it":
        _transactions(topic, "first-")
        _gone(topic)
    with ExitStack() as stack:
        a, b, c, d, e = (stack.enter_context(topic.connect(user=roles.APPLIER)) for _ in range(5))
        assert _starting(a, "a", "t", "u") == [20, 20]  # of u nobody is known
        assert _starting(b, "b", "t") == [20]
        assert _starting(c, "c", "t", "u") == [20, 20], "a is still careful"
        calls.appliers.note_careful("inturn", "a:1:1", ["u"]).on(a)
        assert _starting(d, "d", "t", "u") == [0, 20], "b and c only were because a was: it has an end"
        calls.appliers.note_careful("inturn", "a:1:1", []).on(a)
        for applier, connection in (("b", b), ("c", c), ("d", d)):
            calls.appliers.note_careful("inturn", f"{applier}:1:1", []).on(connection)
        assert _starting(e, "e", "t", "u") == [0, 0]


def test_p5_processes_that_start_at_the_same_moment_after_a_death_all_take_keys_alone(
    topic: Database,
) -> None:
    _transactions(topic, "first-")
    _gone(topic)
    with ExitStack() as stack:
        a, b = (stack.enter_context(topic.connect(user=roles.APPLIER)) for _ in range(2))
        with a.transaction():
            assert _starting(a, "a", "t") == [20]
            assert _starting(b, "b", "t") == [20], "it waits for nobody"


def test_p5_a_worker_says_for_how_long_it_takes_keys_alone(
    topic: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as keys are ready of which one may have ended an applier, in whosever hands."""
    monkeypatch.setattr(pacing, "CHOOSE_SECONDS", 0.01)
    _append(topic, "k")
    says = "SELECT careful FROM inturn.applier"
    announced = "SELECT seen_at > started_at + interval '100 ms' FROM inturn.applier"
    with topic.connect(user=OWNER, autocommit=False) as somebody:
        somebody.execute("SELECT FROM inturn.ticket FOR UPDATE")
        with shop.at_work(topic, Applier(), steady=False):
            until(lambda: topic.value(announced), "it was announced again and again")
            assert topic.value(says) == ["t"]
            monkeypatch.setattr(visits, "PASSED_ON_SECONDS", 0.0)
            until(lambda: topic.value(says) == [], "that was long ago")
            monkeypatch.setattr(visits, "PASSED_ON_SECONDS", 3600.0)
            until(lambda: topic.value(says) == ["t"], "it was not")
            somebody.rollback()
            until(lambda: topic.value(says) == [], "nothing is ready")


#: A number above every limit for those of processes.
_NO_PROCESS = 2**31 - 1


@contextmanager
def _session_of(database: Database, pid: int, number: int = 77) -> Iterator[None]:
    """Have a session announce itself as an applier of a process on this host, until the block is left."""
    host = socket.gethostname()
    with database.connect(user=roles.APPLIER) as session:
        name = f"{host}:{pid}-aaaaaa:{number}"
        session.execute("SELECT inturn.announce_applier(%s, '{t}', %s, %s, '0001')", [name, host, pid])
        backend = session.info.backend_pid
        yield
    here = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
    until(lambda: not database.value(here, [backend]), "it is gone")


@pytest.mark.needs_session("through a pooler no number names a session")
@pytest.mark.parametrize("pid", [_NO_PROCESS, os.getpid()], ids=["a process", "one of the same number"])
def test_p5_a_process_that_starts_before_the_database_has_seen_a_death_takes_keys_alone(
    topic: Database, pid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as the session of the dead one has its keys in hand, and then the first ones."""
    _transactions(topic, "first-")
    append = "SELECT count(inturn.append('t', %s || n, 'do')) FROM generate_series(1, 40) n"
    count = "SELECT count(*), count(DISTINCT xmin::text) FROM app.witness WHERE starts_with(key, %s)"

    def transactions(keys: str) -> int:
        topic.execute(append, [keys])
        until(lambda: topic.execute(count, [keys])[0][0] == 40, "they are applied")
        return int(topic.execute(count, [keys])[0][1])

    monkeypatch.setattr(pacing, "CHOOSE_SECONDS", 0.01)
    monkeypatch.setattr("inturn.applier.process.doubt.NOTICED_SECONDS", 0.05)
    with ExitStack() as dead:
        dead.enter_context(_session_of(topic, pid))
        with shop.at_work(topic, Applier(), steady=False) as fleet:
            assert transactions("there-") == 40
            dead.close()
            until(lambda: fleet._chooser.careful_keys("t") == 20, "that is noticed")
            assert 20 < transactions("gone-") < 40


def test_p5_a_process_that_starts_is_at_no_time_taken_for_dead(
    topic: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its announcement and that of its first worker, which comes from that worker's thread."""
    _transactions(topic, "first-")
    begins, run = threading.Event(), Worker.run
    monkeypatch.setattr(Worker, "run", lambda worker: begins.wait(60) and run(worker))
    with shop.at_work(topic, Applier()):
        assert _careful(topic, "t") == [0]
        begins.set()
        _append(topic, "k")
        until(lambda: topic.value(_APPLIED) == 6, "at work")


def test_p5_a_process_that_starts_beside_others_of_its_host_takes_no_keys_alone(topic: Database) -> None:
    _transactions(topic, "first-")
    with _session_of(topic, os.getppid()):
        assert _transactions(topic, "beside-") < 5


def test_p5_a_process_that_ends_before_it_was_announced_forgets_no_death(topic: Database) -> None:
    _transactions(topic, "first-")
    _gone(topic)
    (created,) = topic.execute("SELECT pg_get_functiondef('inturn.announce_applier'::regproc)")[0]
    replace_in(topic, "announce_applier", ("\nBEGIN\n", "\nBEGIN\n RAISE 'no room';\n"))
    with pytest.raises(psycopg.errors.RaiseException):
        Fleet(topic.applier_dsn, topics=["t"]).start()
    topic.execute(created)
    assert _careful(topic, "t") == [20]


def test_p5_an_inturn_apply_that_cannot_say_its_end_has_ended_as_it_should(topic: Database) -> None:
    topic.execute("REVOKE EXECUTE ON FUNCTION inturn._end_applier FROM inturn_applier")
    _append(topic, "k")
    assert shop.apply_all(topic, Applier()).commands == 1
    assert not topic.value("SELECT ended FROM inturn.applier")


@pytest.mark.parametrize("doubt", ["it lost a connection", "it has begun just now"])
def test_p5_a_call_is_careful_after_an_inturn_apply_whose_keys_may_be_at_fault(
    topic: Database, doubt: str
) -> None:
    """What cost a connection may be ready still; or what ended the one before, where it has just begun."""
    with shop.at_work(topic, Applier(), steady=doubt != "it has begun just now") as fleet:
        _append(topic, "k")
        until(lambda: topic.value(_APPLIED), "at work")
        if doubt == "it lost a connection":
            worker = fleet._crew.watched()[0]
            topic.execute("SELECT pg_terminate_backend(%s, 10000)", [worker.backend[0]])
            _append(topic, "l")
            until(lambda: topic.value(_APPLIED) == 2, "at work again")
    assert fleet._crew.error is None
    gone = "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'inturn apply'"
    until(lambda: topic.value(f"{gone} AND datname = current_database()"), "its sessions to be gone")
    assert _careful(topic, "t") == [20]


def test_p5_a_call_leaves_a_suspect_to_whoever_was_quicker(topic: Database) -> None:
    """Somebody else takes it between the batch that met it and the claim of it alone: the others go on."""
    _append(topic, "k")
    _call(topic)
    _append(topic, "bad")
    topic.execute("SELECT FROM inturn._claim_alone('t', '-infinity', 'elsewhere:1:1')")
    topic.execute("UPDATE inturn.key_cursor SET lease_until = now(), ready_at = now() WHERE key = 'bad'")
    for number in range(5):
        _append(topic, f"k{number}")
    topic.execute("""
        CREATE FUNCTION app.be_quicker() RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
        BEGIN
            IF EXISTS (SELECT FROM inturn.key_cursor WHERE key = 'bad' AND claimed_by <> 'elsewhere:2:1') THEN
                PERFORM inturn._claim_alone('t', '-infinity', 'elsewhere:2:1');
                UPDATE inturn.key_cursor SET
                    lease_until = now() + interval '1 hour', ready_at = now() + interval '1 hour'
                WHERE key = 'bad';
            END IF;
        END $$;
        DELETE FROM inturn.saved_pass;
    """)
    replace_in(
        topic,
        "_visit_alone",
        (r"BEGIN\n    SELECT \* INTO claimed", "BEGIN\n PERFORM app.be_quicker(); SELECT * INTO claimed"),
    )
    with topic.connect(user=roles.APPLIER) as session:
        session.execute("SET inturn.careful_keys = 0")
        session.execute("CALL inturn.apply()")
    assert topic.value(_APPLIED) == 6
    found = topic.execute("SELECT claimed_by, attempts, applied_seq FROM inturn.key_cursor WHERE key = 'bad'")
    assert found == [("elsewhere:2:1", 0, 0)]


def test_p5_a_call_is_not_careful_after_one_that_has_charged_a_cancel(topic: Database) -> None:
    _append(topic, "bad", "cancel")
    with pytest.raises(psycopg.errors.QueryCanceled):
        _call(topic)  # nobody is known: it takes the key alone
    assert topic.execute(_BAD) == [(1, 0)]
    assert _careful(topic, "t") == [0]
    _retry(topic)
    with pytest.raises(psycopg.errors.QueryCanceled):
        _call(topic)  # together with others, had there been some
    assert topic.execute(_BAD) == [(2, 0)]
    assert _careful(topic, "t") == [0]


@pytest.mark.parametrize("hand", ["its", "another"])
def test_p5_a_call_is_not_careful_after_one_that_died_of_a_key_taken_alone(
    topic: Database, hand: str
) -> None:
    """Its lease says which; or whoever found that it had run out has noted that."""
    _append(topic, "bad", "hang")
    dying = topic.session(user=roles.APPLIER, autocommit=True)
    dying.execute("SET inturn.careful_keys = 20")
    running = dying.begin("CALL inturn.apply()")
    until(lambda: topic.value(_SLEEPS, [dying.pid]), "its command hangs")
    kill(topic, dying, running)
    if hand == "another":
        expire(topic)
        topic.execute("SELECT inturn.claim('{t}', 1, '1 minute', 'another')")
    assert _careful(topic, "t") == [0]


@pytest.mark.parametrize("ended_by", ["itself", "an operator", "a statement_timeout"])
def test_p5_a_cancel_in_a_batch_is_charged_to_the_command_that_is_tried_again(
    topic: Database, ended_by: str
) -> None:
    """The others of its batch took effect or were not begun, and the CALL has ended."""
    _append(topic, "k")
    _call(topic)
    _append(topic, "bad", "fail")
    _call(topic)
    assert topic.execute(_BAD) == [(1, 0)]
    topic.execute("UPDATE inturn.command_log SET name = %s WHERE key = 'bad'", [
        "cancel" if ended_by == "itself" else "hang"
    ])  # fmt: skip
    _retry(topic)
    for number in range(5):
        _append(topic, f"k{number}")
    timeout = "SET statement_timeout = '2 s'" if ended_by == "a statement_timeout" else "SELECT"
    calling = topic.session(user=roles.APPLIER, autocommit=True)
    calling.execute(timeout)
    running = calling.begin("CALL inturn.apply()")
    if ended_by == "an operator":
        until(lambda: topic.value(_SLEEPS, [calling.pid]), "the command hangs")
        topic.execute("SELECT pg_cancel_backend(%s)", [calling.pid])
    assert isinstance(running.exception(60), psycopg.errors.QueryCanceled)
    assert topic.execute(_BAD) == [(2, 0)]
    _call(topic)
    assert topic.value(_APPLIED) == 6
    assert topic.execute("SELECT key FROM inturn.turn WHERE outcome <> 'applied' AND key <> 'bad'") == []


def test_p5_a_batch_begins_nothing_after_a_cancel(topic: Database) -> None:
    """A timeout is over then: a further command could hang for ever."""
    for key, name in (("bad", "fail"), ("later", "fail")):
        _append(topic, key, name)
    _call(topic)
    topic.execute("UPDATE inturn.command_log SET name = 'cancel' WHERE key = 'bad'")
    topic.execute("UPDATE inturn.key_cursor SET ready_at = now() - interval '1 s' WHERE key = 'bad'")
    topic.execute("UPDATE inturn.key_cursor SET ready_at = now() WHERE key = 'later'")
    _append(topic, "fresh")
    topic.execute("DELETE FROM inturn.saved_pass")
    before = topic.execute("SELECT * FROM inturn.key_cursor WHERE key = 'later'")
    found = topic.execute(
        "SELECT keys, commands, failures FROM inturn.apply_batch('t', '-infinity', 9, 'me')"
    )
    assert found == [(3, 1, 1)]
    assert topic.execute(_BAD) == [(2, 0)]
    assert topic.execute("SELECT * FROM inturn.key_cursor WHERE key = 'later'") == before


def test_p5_a_worker_that_lost_its_connection_with_one_key_alone_suspects_no_other(
    topic: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key that it had alone is known; the next ones are taken together."""
    topic.execute("SELECT inturn.create_topic('p', 'python')")
    topic.execute("SELECT inturn.append('p', 'bad', 'end')")
    careful: list[None] = []
    monkeypatch.setattr("inturn.applier.inside.visits.Visits.be_careful", lambda _: careful.append(None))
    applier = Applier()

    @applier.handler("p")
    def end(connection: psycopg.Connection[tuple[object, ...]], _: object) -> None:
        connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    fleet = Fleet(topic.applier_dsn, applier, topics=["p"])  # just started: it takes the key alone
    fleet.start()
    lost = "SELECT lost FROM inturn.key_cursor WHERE topic = 'p'"
    until(lambda: topic.value(lost), "the loss is recorded")
    fleet.end(10)
    assert careful == []
