"""P5: what a crash had in hand is taken alone, or in ever smaller company; a key that kills is found."""

from __future__ import annotations

from functools import partial
from typing import Any

from support.database import Database, until
from support.roles import APPLIER

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
