"""P5 outside the database: one command that fails in whatever way costs the others nothing."""

from __future__ import annotations

import threading

import pytest
from support import bad_company, shop
from support.b_server import B
from support.bad_outside import (
    COROUTINE,
    LEASE_CLIENT,
    PLAIN,
    SERVICE,
    Fault,
    Seen,
    coroutine,
    is_healed,
    plain,
    prepare,
    service,
    ways_and_kinds,
    work_by_lease,
)
from support.database import Database, until
from support.refusal import refusal

from inturn.applier import Applier


def _assert_charged(database: Database, fault: Fault) -> None:
    """The bad key has its own error and ended as it should; nobody else was charged."""
    bad = "SELECT held_at IS NOT NULL, attempts, last_error FROM inturn.key_cursor WHERE key = 'bad'"
    if fault.state == "put off":
        until(lambda: database.value("SELECT empty_turns FROM inturn.ticket WHERE key = 'bad'"), "put off")
        assert fault.error in database.execute(bad)[0][2]
    else:
        until(lambda: database.execute(bad)[0][0], "held", 60)
        assert fault.error in database.execute(bad)[0][2]
        assert database.execute(bad)[0][1] <= bad_company.ATTEMPTS
        assert database.execute("SELECT v.* FROM inturn.topic t, inturn.verify(t.name) v") == []
        ((cause, says),) = database.execute("SELECT cause, says FROM inturn.why('bad', 'bad')")
        assert cause == "held"
        assert fault.error in says
    assert bad_company.innocent_and_charged(database) == []
    # Nor was one of them ever lost.
    lost = "SELECT topic, key FROM inturn.turn WHERE key <> 'bad' AND outcome = 'lost'"
    assert database.execute(lost) == []


@pytest.mark.parametrize(
    ("way", "kind"),
    [
        pytest.param(way, kind, marks=[] if tried else [pytest.mark.rest])
        for way, kind, tried in ways_and_kinds(0)
    ],
)
def test_p5_whatever_goes_wrong_in_an_outside_handler_is_charged_to_its_command(
    database: Database, way: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inturn.applier.outside.turns.GIVE_UP_SECONDS", 0.3)
    fault, seen = (PLAIN if way == "plain" else COROUTINE)[kind], Seen()
    handlers = plain(fault, seen) if way == "plain" else coroutine(fault, seen)
    prepare(database, fault)
    with shop.at_work(database, handlers) as fleet:
        until(lambda: is_healed(database), "the healthy keys")
        _assert_charged(database, fault)
        assert fleet.running
    seen.assert_once()


@pytest.mark.parametrize("kind", SERVICE)
def test_p5_whatever_a_service_answers_is_charged_to_its_command(database: Database, kind: str) -> None:
    fault, seen = SERVICE[kind], Seen()
    with B(service(fault, seen)) as b:
        prepare(database, fault, f"http://127.0.0.1:{b.port}/")
        with shop.at_work(database, Applier()) as fleet:
            until(lambda: is_healed(database), "the healthy keys")
            _assert_charged(database, fault)
            assert fleet.running
    seen.assert_once()


@pytest.mark.parametrize("kind", LEASE_CLIENT)
def test_p5_whatever_a_lease_client_does_is_charged_to_its_command(database: Database, kind: str) -> None:
    fault, seen, over = LEASE_CLIENT[kind], Seen(), threading.Event()
    prepare(database, fault, lease="4 seconds")
    clients = [
        threading.Thread(target=work_by_lease, args=(database.applier_dsn, fault, seen, over))
        for _ in range(2)
    ]
    for client in clients:
        client.start()
    try:
        until(lambda: is_healed(database), "the healthy keys")
        _assert_charged(database, fault)
    finally:
        over.set()
        for client in clients:
            client.join()
    seen.assert_once()


@pytest.mark.parametrize("state", ["53100", "55P03"])
def test_p5_what_is_no_keys_fault_puts_no_key_off(database: Database, state: str) -> None:
    prepare(database, Fault(""))
    database.execute(
        "CREATE TRIGGER refuse_mark BEFORE INSERT ON inturn.key_mark FOR EACH ROW WHEN (NEW.key = 'bad')"
        " EXECUTE FUNCTION bad.refuse_turn()"
    )
    database.execute(
        "CREATE OR REPLACE FUNCTION bad.refuse_turn() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE EXCEPTION 'no fault of %', NEW.key USING ERRCODE = '{state}'; END $$"
    )
    claim = "SELECT FROM inturn.claim(ARRAY['bad', 'other'], 1000, NULL, 'a client')"
    assert refusal(database, claim).sqlstate == state
    assert database.execute("SELECT key FROM inturn.ticket WHERE empty_turns > 0") == []
    database.execute("DROP TRIGGER refuse_mark ON inturn.key_mark")
    assert len(database.execute(claim)) == database.value("SELECT count(*) FROM inturn.command_log")
