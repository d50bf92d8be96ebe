"""P5: one command that fails in whatever way costs the others nothing, and has its own error."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from support import bad_company, roles, shop
from support.bad_company import IN_PYTHON, IN_SQL, innocent_and_charged, is_healed, kinds_here, prepare
from support.database import Database, until

from inturn.applier import Applier, Fleet
from inturn.applier.process.totals import WorkerEnded

_IN_BATCHES = pytest.mark.parametrize("in_batches", [False, True], ids=["single", "in batches"])
_STEADY = pytest.mark.parametrize("steady", [True, False], ids=["at work", "just started"])


def _assert_charged(database: Database, fault: bad_company.Fault, *, in_batches: bool = False) -> None:
    """The bad key has its own error and ended as it should; nobody else was charged.

    in_batches: what came before the bad command on its key took effect, what came after it did not.
    """
    bad = "SELECT inturn.key_state(c), attempts, last_error FROM inturn.key_cursor c WHERE key = 'bad'"
    place = bad_company.BESIDE + 1 if in_batches and not fault.alone else 1
    if fault.state == "put off":
        until(lambda: database.value("SELECT empty_turns FROM inturn.ticket WHERE key = 'bad'"), "put off")
    else:
        until(lambda: database.execute(bad)[0][0] == "held", "held", 60)
        assert database.execute(bad)[0][1] == bad_company.ATTEMPTS
    assert fault.error in database.execute(bad)[0][2]
    assert innocent_and_charged(database) == []
    # What a COMMIT of its own kept is its author's: the others of it left nothing.
    kept = database.execute("SELECT seq FROM bad.witness WHERE key = 'bad' AND seq >= %s", [place])
    assert len(kept) <= fault.keeps
    if fault.state != "put off":
        assert database.value("SELECT applied_seq FROM inturn.key_cursor WHERE key = 'bad'") == place - 1
        effects = "SELECT count(*) FROM bad.witness WHERE key = 'bad' AND seq < %s"
        assert database.value(effects, [place]) == place - 1
    if fault.state != "put off":
        assert database.execute("SELECT v.* FROM inturn.topic t, inturn.verify(t.name) v") == []
        ((cause, says),) = database.execute("SELECT cause, says FROM inturn.why('bad', 'bad')")
        assert cause == "held"
        assert fault.error in says


@pytest.mark.each_value
@_IN_BATCHES
@_STEADY
@pytest.mark.parametrize("kind", kinds_here(IN_PYTHON))
def test_p5_whatever_goes_wrong_in_a_handler_is_charged_to_its_command(
    database: Database, kind: str, *, steady: bool, in_batches: bool
) -> None:
    fault, workers = IN_PYTHON[kind], 3 if steady else 1
    prepare(database, fault, target="python", in_batches=in_batches)
    handlers = bad_company.handlers(fault, in_batches=in_batches)
    with _other_lock(database), shop.at_work(database, handlers, workers=workers, steady=steady) as fleet:
        until(lambda: is_healed(database), "the healthy keys")
        _assert_charged(database, fault, in_batches=in_batches)
        assert fleet.running
    assert all(worker.error is None for worker in fleet._crew.workers)


@pytest.mark.each_value
@_IN_BATCHES
@_STEADY
@pytest.mark.parametrize("kind", kinds_here(IN_SQL))
def test_p5_whatever_goes_wrong_in_a_sql_target_is_charged_to_its_command(
    database: Database, kind: str, *, steady: bool, in_batches: bool
) -> None:
    fault = IN_SQL[kind]
    prepare(database, fault, target="sql", in_batches=in_batches)
    with _other_lock(database), shop.at_work(database, Applier(), workers=2, steady=steady):
        until(lambda: is_healed(database), "the healthy keys")
        _assert_charged(database, fault, in_batches=in_batches)


@pytest.mark.each_value
@_IN_BATCHES
@pytest.mark.parametrize("careful_keys", [0, 20])
@pytest.mark.parametrize("kind", kinds_here(IN_SQL))
def test_p5_whatever_goes_wrong_under_call_is_charged_to_its_command(
    database: Database, kind: str, careful_keys: int, *, in_batches: bool
) -> None:
    fault = IN_SQL[kind]
    prepare(database, fault, target="sql", in_batches=in_batches)

    def call(careful: int) -> None:
        with database.connect(user=roles.APPLIER) as session:  # a session of its own, for its setting
            session.execute(f"SET inturn.careful_keys = {careful}")
            # A cancel ends the call once it is charged; what ends it before, the next one finds out.
            with suppress(psycopg.DatabaseError):
                session.execute("CALL inturn.apply()")

    def call_until(is_done: Callable[[], bool], what: str) -> None:
        def look() -> bool:
            if not is_done() and _is_due(database):
                call(20)
            _end_leases(database)
            return is_done()

        until(look, what)

    with _other_lock(database):
        call(careful_keys)
        call_until(lambda: is_healed(database), "the healthy keys")
        call_until(lambda: _is_charged(database, fault), "the bad one")
        said = fault.error if fault.under_call is None else fault.under_call
        _assert_charged(database, replace(fault, error=said), in_batches=in_batches)


def _is_due(database: Database) -> bool:
    """Whether a call would find anything: a key that was lost is due when its lease has run out."""
    due = "SELECT EXISTS (SELECT FROM inturn.ticket WHERE ready_at <= clock_timestamp())"
    return bool(database.value(due))


def _end_leases(database: Database) -> None:
    """Let the lease of a key that was lost before be over: no call is at work that could have it."""
    # The first one, of a second, runs out by itself; these take ten.
    database.execute("""
        WITH lost AS (
            UPDATE inturn.key_mark SET lease_until = now() WHERE lost > 0 AND lease_until > now()
            RETURNING topic, key)
        UPDATE inturn.ticket t SET ready_at = now() FROM lost WHERE (t.topic, t.key) = (lost.topic, lost.key)
    """)


def _is_charged(database: Database, fault: bad_company.Fault) -> bool:
    if fault.state == "put off":
        return bool(database.value("SELECT empty_turns FROM inturn.ticket WHERE key = 'bad'"))
    return bool(database.value("SELECT held_at FROM inturn.key_cursor WHERE key = 'bad'"))


def _other_lock(database: Database) -> psycopg.Connection[tuple[object, ...]]:
    """Hold the lock that the fault with a lock_timeout waits for, in no transaction that may time out."""
    connection = psycopg.connect(database.server.dsn(database.name), autocommit=True)
    connection.execute("SELECT pg_advisory_lock(77)")
    return connection


@pytest.mark.parametrize("target", ["python", "sql"])
def test_p5_a_key_that_was_lost_is_taken_by_lease_among_a_crowd(database: Database, target: str) -> None:
    """An applier at work for long takes keys together: not those that another one was lost with."""
    prepare(database, bad_company.Fault(""), target="python")
    database.execute("""
        CREATE TABLE bad.holder (key text, claimed_by text);
        CREATE FUNCTION bad.hold(topic text, key text) RETURNS void LANGUAGE sql SECURITY DEFINER AS $$
            INSERT INTO bad.holder SELECT hold.key, (
                SELECT claimed_by FROM inturn.key_cursor c
                WHERE c.topic = hold.topic AND c.key = hold.key) $$;
        CREATE FUNCTION bad.look(command inturn.command) RETURNS void LANGUAGE sql VOLATILE AS $$
            INSERT INTO bad.witness (topic, key, seq) VALUES (command.topic, command.key, command.seq);
            SELECT bad.hold(command.topic, command.key) $$;
    """)
    if target == "sql":
        database.connect(user=roles.OWNER).execute(
            "SELECT inturn.set_topic(name, target => 'sql:bad.look') FROM inturn.topic"
        )
    applier = Applier()

    def look(connection: psycopg.Connection[Any], command: Any) -> None:
        connection.execute(
            "SELECT bad.look(ROW(%s, %s, %s, '', NULL, NULL, 1)::inturn.command)",
            (command.topic, command.key, command.seq),
        )

    for topic in ("bad", "other") if target == "python" else ():
        applier.handler(topic)(look)
    assert database.value("SELECT key FROM inturn._claim_alone('bad', '-infinity', 'elsewhere:1:1')") == "bad"
    until(
        lambda: database.value(
            "SELECT lease_until <= clock_timestamp() FROM inturn.key_cursor WHERE key = 'bad'"
        ),
        "the end of its lease",
    )
    with shop.at_work(database, applier):
        until(lambda: is_healed(database), "the healthy keys")
        until(lambda: database.execute("SELECT FROM bad.witness WHERE key = 'bad'"), "the lost one")
    holders = dict(database.execute("SELECT key, claimed_by FROM bad.holder"))
    assert holders["bad"] not in {None, "elsewhere:1:1"}


def test_a_worker_that_ends_unasked_is_an_error_whatever_ended_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("inturn.applier.inside.rounds.Rounds.serve", interrupt)
    shop.open_shop(database)
    fleet = Fleet(database.applier_dsn, shop.applier)
    fleet.start()
    assert fleet.wait(60)
    error = fleet.end(0).error
    assert isinstance(error, WorkerEnded)
    assert isinstance(error.__cause__, KeyboardInterrupt)


def test_p5_under_call_the_number_of_careful_keys_may_be_taken_back(database: Database) -> None:
    """A setting that was made for one transaction is empty afterwards, and not missing."""
    prepare(database, IN_SQL["a deferred foreign key"], target="sql")
    with database.connect(user=roles.APPLIER) as session:
        # So it is after a SET LOCAL where no configuration has it.
        session.execute("SET inturn.careful_keys = ''")
        session.execute("CALL inturn.apply()")
    assert is_healed(database)


@_STEADY
def test_p5_a_deferred_constraint_is_charged_to_the_command_that_broke_it(
    database: Database, *, steady: bool
) -> None:
    """And not to the first one of its turn: those before it stay applied."""
    shop.open_shop(database, settings="max_attempts => 1")
    database.execute(bad_company.CONSTRAINTS)
    applier = Applier()

    @applier.handler(shop.TOPIC)
    def apply(connection: psycopg.Connection[Any], command: Any) -> None:
        shop.write_witness(connection, command)
        if command.name == "break":
            connection.execute("INSERT INTO bad.child VALUES (7)")

    shop.append(database, "a", "insert", "insert", "break", "insert")
    with shop.at_work(database, applier, steady=steady):
        until(lambda: database.value("SELECT held_at FROM inturn.key_cursor"), "held")
    assert shop.applied(database, "a") == [1, 2]
    assert database.value("SELECT applied_seq FROM inturn.key_cursor") == 2


def test_p5_a_deferred_constraint_is_charged_however_long_its_turn_took(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The turn is over its time when the check fails: the run that finds the command comes all the same."""
    monkeypatch.setattr("inturn.applier.inside.python_target.LONGEST_TURN_SECONDS", 0.05)
    shop.open_shop(database, settings="max_attempts => 1")
    database.execute(bad_company.CONSTRAINTS)
    applier = Applier()

    @applier.handler(shop.TOPIC)
    def apply(connection: psycopg.Connection[Any], command: Any) -> None:
        shop.write_witness(connection, command)
        if command.name == "break":
            connection.execute("INSERT INTO bad.child VALUES (7)")
            connection.execute("SELECT pg_sleep(0.1)")  # longer than a turn may begin commands

    shop.append(database, "a", "break", "insert")
    with shop.at_work(database, applier):
        until(lambda: database.value("SELECT held_at FROM inturn.key_cursor"), "held")
    assert shop.applied(database, "a") == []
    assert "child_parent_fkey" in database.value("SELECT last_error FROM inturn.key_cursor")


@pytest.mark.each_value
@pytest.mark.parametrize(
    "how", ["SET TRANSACTION READ ONLY", "SELECT set_config('transaction_read_only', 'on', true)"]
)
@pytest.mark.parametrize("then", ["insert", "look"])
@_STEADY
def test_p5_a_transaction_made_read_only_is_charged_to_the_command_that_did_it(
    database: Database, how: str, then: str, *, steady: bool
) -> None:
    """And not to the next one of its turn, which writes, nor to what records a turn that writes no more."""
    shop.open_shop(database, settings="max_attempts => 1")
    applier = Applier()

    @applier.handler(shop.TOPIC)
    def apply(connection: psycopg.Connection[Any], command: Any) -> None:
        if command.name != "look":
            shop.write_witness(connection, command)
        if command.name == "close":
            connection.execute(how)

    shop.append(database, "a", "insert", "close", then, then)
    with shop.at_work(database, applier, steady=steady):
        until(lambda: database.value("SELECT held_at FROM inturn.key_cursor"), "held")
    assert shop.applied(database, "a") == [1]
    assert database.value("SELECT applied_seq FROM inturn.key_cursor") == 1
    assert "read-only" in database.value("SELECT last_error FROM inturn.key_cursor")
