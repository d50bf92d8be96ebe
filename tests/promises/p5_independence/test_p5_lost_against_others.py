"""P5: a key whose own statements of inturn lose against other transactions each time waits ever longer."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest
from support import bad_company, roles, shop
from support.database import Database, until
from support.race import replace_in

from inturn.applier import Applier, Command, pacing
from inturn.applier.inside import visits
from inturn.applier.outside import link

_WAYS = ("a handler in Python", "a SQL target", "a SQL target under CALL", "a handler outside")
#: Of each key but the bad one.
_HEALTHY = 10
_TRIES = "SELECT empty_turns FROM inturn.ticket WHERE key = 'bad'"
_WAIT = "SELECT extract(epoch FROM ready_at - failed_at)::float8 FROM inturn.key_cursor WHERE key = 'bad'"
_APPLIED = "SELECT count(DISTINCT key) FROM app.done WHERE key <> 'bad'"


def _open(database: Database, target: str = "python", state: str = "40001", outcome: str = "%") -> None:
    """Make topic t, where what is written of turns of the bad key, with such an outcome, always loses."""
    database.execute(f"""
        CREATE SCHEMA app; GRANT USAGE ON SCHEMA app TO PUBLIC;
        CREATE TABLE app.done (key text); GRANT INSERT ON app.done TO PUBLIC;
        CREATE FUNCTION app.apply(command inturn.command) RETURNS void LANGUAGE sql AS
            'INSERT INTO app.done VALUES (command.key)';
        CREATE FUNCTION app.lose() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION USING ERRCODE = '{state}', MESSAGE = 'lost once more'; END $$;
        SELECT inturn.create_topic('t', '{target}');
        SELECT inturn.append('t', 'bad', 'do');
        SELECT count(inturn.append('t', 'k' || n, 'do')) FROM generate_series(1, {_HEALTHY}) n;
        CREATE TRIGGER lose BEFORE INSERT ON inturn.turn FOR EACH ROW
            WHEN (NEW.key = 'bad' AND NEW.outcome LIKE '{outcome}') EXECUTE FUNCTION app.lose();
    """)


def _handlers(database: Database, calls: list[str], *, outside: bool) -> Applier:
    applier = Applier()

    def apply(connection: psycopg.Connection[Any], command: Command) -> None:
        calls.append(command.key)
        connection.execute("INSERT INTO app.done VALUES (%s)", (command.key,))

    def apply_outside(command: Command) -> None:
        with database.connect(user=roles.APPLIER) as connection:
            apply(connection, command)

    if outside:
        applier.handler("t", outside=True)(apply_outside)
    else:
        applier.handler("t")(apply)
    return applier


def _lose_thrice(database: Database, way: str, calls: list[str]) -> None:
    """Apply until the bad key has lost three times, and the healthy ones are done."""

    def lost() -> bool:
        return (database.value(_TRIES) or 0) >= 3 and database.value(_APPLIED) == _HEALTHY

    if way == "a SQL target under CALL":
        with database.connect(user=roles.APPLIER) as session:
            session.execute("SET inturn.careful_keys = 20")
            until(lambda: session.execute("CALL inturn.apply()") and lost(), "its tries")
        return
    handlers = _handlers(database, calls, outside=way == "a handler outside")
    with shop.at_work(database, handlers if way.startswith("a handler") else Applier()):
        until(lost, "its tries")


def _why(database: Database) -> tuple[str, str]:
    """Return what `why` says of the bad key while it waits, however short that is."""
    database.execute("UPDATE inturn.key_cursor SET ready_at = now() + interval '1 minute' WHERE key = 'bad'")
    ((cause, says),) = database.execute("SELECT cause, says FROM inturn.why('t', 'bad')")
    return cause, says


@pytest.mark.parametrize("way", _WAYS)
def test_p5_a_key_whose_turn_always_loses_against_others_waits_ever_longer_and_says_why(
    database: Database, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacing, "FIRST_AGAIN_SECONDS", 1e-5)
    sql, calls = way.startswith("a SQL"), list[str]()
    # A failure could be recorded.
    _open(database, "sql:app.apply" if sql else "python", "40P01" if sql else "40001", "applied")
    _lose_thrice(database, way, calls)
    tries = database.value(_TRIES)
    # In a batch, perhaps, and then alone.
    assert calls.count("bad") <= tries + 2
    # Or longer: an applier takes one suspect at a time.
    assert database.value(_WAIT) >= 0.0099 * 2 ** (tries - 1)
    cause, says = _why(database)
    assert cause == "retrying"
    assert "counts as no attempt" in says
    assert "lost once more" in says
    assert bad_company.innocent_and_charged(database) == []
    database.execute("DROP TRIGGER lose ON inturn.turn")
    database.execute("UPDATE inturn.key_cursor SET ready_at = now() WHERE key = 'bad'")
    handlers = _handlers(database, calls, outside=way == "a handler outside")
    shop.apply_all(database, Applier() if sql else handlers)
    assert database.value("SELECT count(*) FROM inturn.ticket") == 0
    assert database.execute("SELECT FROM inturn.verify('t')") == []


def test_p5_a_suspect_whose_claim_always_loses_keeps_no_other_key_from_being_claimed(
    database: Database,
) -> None:
    """What becomes of its last turn is recorded when it is claimed."""
    _open(database)
    claim = "SELECT key, epoch FROM inturn._claim_alone('t', '-infinity', %s)"
    assert database.execute(claim, ["host:1:1"]) == [("bad", 1)]
    due = "UPDATE inturn.key_cursor SET {} ready_at = now() - interval '1 hour' WHERE key = 'bad'"
    database.execute(due.format("lease_until = now(),"))
    database.execute("DELETE FROM inturn.saved_pass")
    assert database.execute(claim, ["host:2:1"]) == [("bad", None)]
    cause, says = _why(database)
    assert (cause, "it could not be claimed: lost once more" in says) == ("retrying", True)
    database.execute(
        "UPDATE inturn.key_cursor SET claimed_by = 'host:1:1', claimed_at = now() WHERE key = 'bad'"
    )
    database.execute(due.format("lease_until = now(),"))
    database.execute("DELETE FROM inturn.saved_pass")
    claimed = "SELECT count(*) FROM inturn.claim('{t}'::text[], 50, '1 hour', 'host:3:1')"
    assert database.value(claimed) == _HEALTHY
    # Nor can it be said what became of it.
    database.execute("UPDATE inturn.key_cursor SET lost = 0, ready_at = now() WHERE key = 'bad'")
    ((key, epoch),) = database.execute(claim, ["host:4:1"])
    lose = "SELECT inturn._lose_alone('t', %s, %s, 'boom', true)"
    assert database.value(lose, [key, epoch]) == "put off"
    assert database.value(_WAIT) == pytest.approx(0.01 * 2 ** (database.value(_TRIES) - 1))
    assert bad_company.innocent_and_charged(database) == []


@pytest.mark.parametrize("state", ["serialization_failure", "lock_not_available"])
def test_p5_a_claim_that_loses_over_and_over_is_made_again_after_ever_longer_pauses(
    database: Database, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    _open(database)
    database.execute("DROP TRIGGER lose ON inturn.turn")
    database.execute("CREATE SEQUENCE app.once; GRANT USAGE ON SEQUENCE app.once TO PUBLIC")
    loses = f"IF nextval('app.once') <= {visits.MOST_DOUBLINGS + 3} THEN RAISE {state}; END IF;"
    replace_in(database, "_claim_alone", (r"\nBEGIN\n", f"\nBEGIN {loses}\n"))
    pauses: list[int] = []

    def pause(times: int) -> float:
        pauses.append(times)
        return 0.0

    monkeypatch.setattr(pacing, "again_seconds", pause)
    with shop.at_work(database, _handlers(database, [], outside=False), steady=False):
        until(lambda: database.value(_APPLIED) == _HEALTHY, "all of them")
    assert pauses == [*range(visits.MOST_DOUBLINGS + 1), visits.MOST_DOUBLINGS, visits.MOST_DOUBLINGS]


def test_p5_a_step_that_always_loses_holds_up_no_other_steps(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs again and again; the progress of others, and the renewal of their leases, does not wait."""
    _open(database)
    database.execute("""
        CREATE SEQUENCE app.lost;
        CREATE OR REPLACE FUNCTION app.lose() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM nextval('app.lost'); RAISE serialization_failure; END $$""")
    monkeypatch.setattr(link, "AGAIN_TIMES", 10**9)
    monkeypatch.setattr(pacing, "again_seconds", lambda _: 0.005)
    runs_again, handlers = threading.Event(), Applier()

    @handlers.handler("t", outside=True)
    def _(command: Command) -> None:
        assert command.key == "bad" or runs_again.wait(60)

    with shop.at_work(database, handlers):
        try:
            until(lambda: database.value("SELECT last_value FROM app.lost") >= 3, "it runs again")
            runs_again.set()
            recorded = "SELECT count(*) FROM inturn.turn WHERE outcome = 'applied'"
            until(lambda: database.value(recorded) == _HEALTHY, "the others' progress")
        finally:
            runs_again.set()
            database.execute("DROP TRIGGER lose ON inturn.turn")
        until(lambda: not database.value("SELECT count(*) FROM inturn.ticket"), "its own")
    assert bad_company.innocent_and_charged(database) == []


def test_p5_a_topic_whose_claims_are_refused_keeps_no_other_topic_from_being_claimed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    _open(database)
    database.execute("SELECT inturn.create_topic('a'), inturn.append('a', 'k', 'do')")
    database.execute("DROP TRIGGER lose ON inturn.turn")
    refuses = "IF topics = '{a}' THEN RAISE disk_full; END IF;"
    replace_in(database, "claim(text[],integer,interval,text)", (r"\nBEGIN\n", f"\nBEGIN {refuses}\n"))
    monkeypatch.setattr(pacing, "REFUSED_SECONDS", 3600.0)
    handlers = _handlers(database, [], outside=True)
    handlers.handler("a", outside=True)(lambda _: None)
    with shop.at_work(database, handlers):
        until(lambda: database.value(_APPLIED) == _HEALTHY, "the other topic")


def test_p5_a_key_whose_numbering_on_arrival_always_loses_keeps_no_other_from_being_numbered(
    database: Database,
) -> None:
    """Each pass of an applier begins with that, over all of its topics."""
    _open(database)
    database.execute("DROP TRIGGER lose ON inturn.turn")
    database.execute("SELECT inturn.create_topic('arrivals', numbering => 'arrival')")
    database.execute("""
        CREATE TRIGGER lose BEFORE INSERT ON inturn.command_log FOR EACH ROW
            WHEN (NEW.topic = 'arrivals' AND NEW.key = 'bad') EXECUTE FUNCTION app.lose()""")
    for key in ("bad", "good"):
        database.execute("SELECT inturn.append('arrivals', %s, 'do')", [key])
    handlers, done = _handlers(database, [], outside=False), list[str]()
    handlers.handler("arrivals")(lambda _, command: done.append(command.key))
    with shop.at_work(database, handlers):
        until(lambda: database.value(_APPLIED) == _HEALTHY and done == ["good"], "the others")
        ((cause, details),) = database.execute("SELECT cause, details FROM inturn.why('arrivals', 'bad')")
        assert (cause, "lost once more" in details["left_because"]) == ("not_numbered", True)
        database.execute("DROP TRIGGER lose ON inturn.command_log")
        until(lambda: done == ["good", "bad"], "and it, when it has stopped losing")
