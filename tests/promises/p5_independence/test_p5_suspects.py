"""P5: what a crash had in hand is taken alone, or in ever smaller company; a key that kills is found."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

from support.database import Database, come_first, until
from support.roles import APPLIER

from inturn.applier import Applier, Command, Fleet
from inturn.applier.process.names import worker_name
from inturn.schema.version import HEAD

#: The most suspects that a process takes together, and how many wait where it does so.
COMPANY, MANY = 16, 100
HERE, THERE = "here:1:1", "there:1:1"
_CLAIM = "SELECT key, epoch, seq FROM inturn.claim('{t}', 1000, '1 hour', %s)"
#: What was put off for a moment is due.
_WAIT = """
    UPDATE inturn.ticket t SET ready_at = now() - CASE t.key WHEN %s THEN interval '1 s' ELSE '0' END
    FROM inturn.key_mark m
    WHERE (t.topic, t.key, t.epoch) = (m.topic, m.key, m.epoch)
      AND m.claimed_by IS NULL AND m.held_at IS NULL
"""


def _crash(database: Database, keys: int) -> None:
    """Make a topic of which a process has died that had all of its keys in hand."""
    database.execute("SELECT inturn.create_topic('t', max_attempts => 2)")
    database.execute("SELECT count(inturn.append('t', 'k' || n, 'do')) FROM generate_series(1, %s) n", [keys])
    assert len(_claim(database, "dead:1:1")) == keys
    _die(database, "dead:1:1")


def _die(database: Database, applier: str = HERE, first: str = "") -> None:
    """Let its leases be over; one key is found first."""
    database.execute(
        "UPDATE inturn.key_cursor SET lease_until = now(),"
        " ready_at = now() - CASE key WHEN %s THEN interval '1 s' ELSE '0' END WHERE claimed_by = %s",
        [first, applier],
    )


def _claim(database: Database, applier: str = HERE, first: str = "") -> list[tuple[Any, ...]]:
    database.execute(_WAIT, [first])
    database.execute("DELETE FROM inturn.saved_pass")
    return database.execute(_CLAIM, [applier])


def _apply(database: Database, claimed: list[tuple[Any, ...]]) -> None:
    database.execute(
        "SELECT inturn.advance('t', key, epoch, seq), inturn.release('t', key, epoch)"
        " FROM unnest(%s::text[], %s::bigint[], %s::bigint[]) c (key, epoch, seq)",
        [list(column) for column in zip(*claimed, strict=True)],
    )


def _claim_company(database: Database) -> list[tuple[Any, ...]]:
    """Apply suspects until some are claimed together; return those."""
    sizes = set()
    while len(claimed := _claim(database)) <= 1:
        sizes.add(len(claimed))
        _apply(database, claimed)
    assert sizes == {1}, "nobody knew yet that there are many"
    return claimed


def test_p5_of_many_suspects_a_process_takes_some_together_and_finds_the_one_that_kills(
    database: Database,
) -> None:
    _crash(database, MANY + 2 * COMPANY)
    company = _claim_company(database)
    assert len(company) == COMPANY
    bad, deaths, claimed = company[5][0], 0, company
    while not database.value("SELECT held_at IS NOT NULL FROM inturn.key_cursor WHERE key = %s", [bad]):
        if bad in {key for key, *_ in claimed}:
            deaths += 1
            assert len(claimed) == (COMPANY if deaths == 1 else 1)
            _die(database, first=bad)
        else:
            _apply(database, claimed)
        claimed = _claim(database, first=bad)
    assert deaths == 3, "once in company, and as often alone as it has attempts"
    turns = database.execute("SELECT key, outcome, count(*) FROM inturn.turn GROUP BY key, outcome")
    twice = {key for key, outcome, times in turns if outcome == "lost" and times > 1}
    assert twice <= {key for key, *_ in company}
    assert {key for key, outcome, _ in turns if outcome not in {"applied", "lost"}} == {bad}


def test_p5_in_company_are_few_that_were_lost_once_and_nobody_is_beside_one_that_was_lost_twice(
    database: Database,
) -> None:
    _crash(database, MANY + 4 * COMPANY)
    company = _claim_company(database)
    assert _claim(database) == [], "there are enough in hand"
    assert len(_claim(database, THERE)) == COMPANY, "another process has its own"
    twice = company[5][0]
    _die(database, first=twice)
    assert [key for key, *_ in _claim(database)] == [twice]
    marks = "SELECT lost, attempts FROM inturn.key_cursor WHERE key = %s"
    assert database.execute(marks, [twice]) == [(2, 0)]
    assert _claim(database) == [], "it is alone"


def test_p5_few_suspects_are_taken_alone(database: Database) -> None:
    """To find out which of them kills costs no further death."""
    _crash(database, MANY)
    for _ in range(4):
        claimed = _claim(database)
        assert len(claimed) == 1
        _apply(database, claimed)


def test_p5_an_applier_that_is_alive_has_not_ended_where_its_lease_ran_out(database: Database) -> None:
    """Only of one that is gone it is known that the key which it took alone was the cause."""
    database.execute("SELECT inturn.create_topic('t')")
    ended = "SELECT ended FROM inturn.applier WHERE applier = %s"
    gone = "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = %s"
    for alive in (True, False):
        database.execute("SELECT inturn.append('t', %s, 'do')", [f"alive {alive}"])
        session = database.connect(user=APPLIER)
        session.execute("SELECT inturn.announce_applier(%s, '{t}', 'here', 1, %s)", [HERE, HEAD])
        assert len(session.execute(_CLAIM, [HERE]).fetchall()) == 1
        if not alive:
            pid = session.info.backend_pid
            session.close()
            until(partial(database.value, gone, [pid]), "its session is gone")
        _die(database)
        taken = _claim(database, THERE)
        assert len(taken) == 1
        assert database.value(ended, [HERE]) == (not alive)
        _apply(database, taken)


_ALONE = "SELECT key, epoch IS NOT NULL FROM inturn._claim_alone('t', '-infinity', %s)"
_LOST = "UPDATE inturn.key_cursor SET lease_until = {0}, ready_at = now() WHERE key = 'suspect'"


def _suspect(database: Database) -> None:
    """Make a suspect of a key, and another key beside it."""
    database.execute("SELECT inturn.create_topic('t')")
    database.execute("SELECT inturn.append('t', 'suspect', 'do')")
    assert database.execute(_ALONE, ["dead:1:1"]) == [("suspect", True)]
    database.execute(_LOST.format("now()"))
    database.execute("SELECT inturn.append('t', 'fresh', 'do')")


def test_p5_a_suspect_that_takes_long_keeps_no_other_key_from_being_taken_alone(database: Database) -> None:
    """A process may work on it outside the database for hours, while its workers inside are careful."""
    _suspect(database)
    assert database.execute(_ALONE, [HERE]) == [("suspect", True)]
    lasts = "UPDATE inturn.key_cursor SET claimed_at = now() {}, lease_until = now() + '1 h' WHERE lost > 0"
    for begun, taken in (("+ interval '1 h'", [(None, False)]), ("- interval '2 s'", [("fresh", True)])):
        database.execute(lasts.format(begun))
        assert database.execute(_ALONE, ["here:1:2"]) == taken


_VISIT_ALONE = """
    CALL inturn._visit_alone('orders', '-infinity', 'here:1:2', inturn._keep_settings(NULL), 0, 0, 5, '{}')
"""


def test_p5_a_call_counts_no_key_as_taken_alone_that_it_could_not_take(witness: Database) -> None:
    """It is as careful for its first keys as before: it would take twenty of them for taken in a moment."""
    _suspect(witness)
    assert witness.execute(_ALONE, [HERE]) == [("suspect", True)]
    lasts = "UPDATE inturn.key_cursor SET claimed_at = now() + '1 h', lease_until = now() {} WHERE lost > 0"
    witness.execute("SELECT inturn.append('orders', 'a', 'insert')")
    with witness.connect(user=APPLIER) as session:
        for lease, taken in (("+ interval '1 h'", 0), ("- interval '1 s'", 1)):
            witness.execute(lasts.format(lease))
            found = session.execute(_VISIT_ALONE).fetchone()
            assert found is not None
            hand, commands, failures, careful, _ = found
            assert (hand is None, commands, failures, careful) == (False, taken, 0, 5 - taken)


def test_p5_a_suspect_is_taken_beside_other_keys_where_they_are_always_there(database: Database) -> None:
    """A process that works outside the database, too, always has something in hand."""
    _suspect(database)
    come_first(database, "fresh")
    assert [key for key, *_ in database.execute(_CLAIM.replace("1000", "1"), [HERE])] == ["fresh"]
    for lost_at, begun in (("now() + interval '1 h'", False), ("now() - interval '2 min'", True)):
        database.execute(_LOST.format(lost_at))
        assert database.execute(_ALONE, ["here:1:2"]) == [("suspect", begun)]


def test_p5_a_fleet_that_has_started_goes_on_beside_a_suspect_that_takes_long(
    database: Database,
) -> None:
    """It takes its first keys alone: none of them, while the suspect's command lasted."""
    _crash(database, 1)
    database.execute("SELECT inturn.create_topic('healthy', 'python')")
    applier, over = Applier(), threading.Event()
    applier.handler("healthy")(lambda _connection, _command: None)

    @applier.handler("t", outside=True)
    def wait(_command: Command) -> None:
        over.wait(300)

    fleet = Fleet(database.applier_dsn, applier, workers=2)
    in_hand = "SELECT count(*) FROM inturn.key_cursor WHERE lost > 0 AND claimed_by IS NOT NULL"
    begun_before = "UPDATE inturn.key_cursor SET claimed_at = now() - interval '2 s' WHERE lost > 0"
    pending = "SELECT count(*) FROM inturn.key_cursor WHERE topic = 'healthy' AND ready_at IS NOT NULL"
    fleet.start()
    try:
        until(lambda: database.value(in_hand), "the suspect is in hand")
        database.execute(begun_before)
        database.execute(
            "SELECT count(inturn.append('healthy', 'k' || n, 'do')) FROM generate_series(1, 50) n"
        )
        until(lambda: not database.value(pending), "the healthy ones are applied")
        assert database.value(in_hand)
    finally:
        over.set()
        fleet.end(60)


def test_p5_a_drain_does_not_end_while_its_process_has_just_begun_a_suspect(database: Database) -> None:
    """It takes no first key of a topic beside that: which is not to say that none is ready."""
    _crash(database, 1)
    ((key, epoch, _),) = _claim(database, worker_name(9))
    database.execute("UPDATE inturn.key_cursor SET claimed_at = now() + '1 h' WHERE topic = 't'")
    database.execute("SELECT inturn.create_topic('healthy', 'python'), inturn.append('healthy', 'k', 'do')")
    applier = Applier()
    applier.handler("healthy")(lambda _connection, _command: None)
    fleet = Fleet(database.applier_dsn, applier, topics=["healthy"], drain=True)
    fleet.start()
    assert not fleet.wait(0.3)
    database.execute("SELECT inturn.release('t', %s, %s)", [key, epoch])
    assert fleet.wait(60)
    outcome = fleet.end(0)
    assert (outcome.error, outcome.commands) == (None, 1)
