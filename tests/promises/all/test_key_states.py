"""docs/explanation/key-states.md, executed: every event in every situation does what the page's tables say.

Every cell is a key of its own, in a topic of its own, named SITUATION, EVENT. Events that no table has for a
situation are those of its row `any other`: they are refused as it says, or change nothing.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pytest
from support.database import Database
from support.key_events import EVENTS
from support.key_hands import Connection, Key
from support.key_situations import GAPS, SITUATIONS
from support.oracle import Oracle
from support.place import DOCS, OPERATOR_ACTIONS
from support.refusal import refusal
from support.roles import OWNER

PAGE = DOCS / "explanation" / "key-states.md"
#: In a cell: nothing changes. An event that cannot come about has no cell.
NOTHING, CANNOT_COME, ANY_OTHER = "–", "", "any other"  # noqa: RUF001
NUMBERINGS = ("assigned", "given")


@dataclass(frozen=True)
class Table:
    """A table of the page; its rows are named by their first columns."""

    columns: tuple[str, ...]
    rows: dict[str, tuple[str, ...]]

    def cell(self, row: str, column: str) -> str:
        return self.rows.get(row, self.rows.get(ANY_OTHER, ()))[self.columns.index(column)]


def _tables() -> Iterator[Table]:
    for block in re.findall(r"(?:^\|.*\|\n)+", PAGE.read_text(), re.MULTILINE):
        head, _, *rows = [
            tuple(cell.strip() for cell in line.strip().strip("|").split("|")) for line in block.splitlines()
        ]
        yield Table(head[1:], {row[0]: row[1:] for row in rows})


TABLES = list(_tables())
(STORED,) = (table for table in TABLES if "what its ticket says" in table.columns)
ABOUT = {event: table for table in TABLES if "what happens" in table.columns for event in table.rows}
#: What each event leads to: a column an event, a row a situation.
MATRICES = [table for table in TABLES if set(table.columns) <= EVENTS.keys()]
ARROWS = re.findall(r"^    (\S+) --> (\w+): (.+)$", PAGE.read_text(), re.MULTILINE)


def _about(event: str, column: str) -> str:
    """What the page says about an event in general."""
    table = ABOUT[event]
    return table.cell(event, column) if column in table.columns else ""


def _refused_here(event: str, numbering: str) -> str | None:
    """The SQLSTATE with which a topic of this numbering refuses an event in every situation."""
    where, _, sqlstate = _about(event, "only where").partition(", otherwise ")
    if not where or where == {"assigned": "callers do not number", "given": "callers number"}[numbering]:
        return None
    return sqlstate or CANNOT_COME


def _sessions(database: Database) -> tuple[Connection, Connection]:
    """Those of whoever acts, and of a caller beside it."""
    return database.connect(autocommit=False, user=OWNER), database.connect(autocommit=False, user=OWNER)


def _let_happen(key: Key, event: str) -> tuple[str, set[str]]:
    """Let an event happen to a key; return what its cell has to say, and which of its rows were locked."""
    before = key.stored()
    locked: set[str] = set()
    try:
        EVENTS[event](key)
        locked = key.locked()
        key.hands.commit()
        key.other.commit()
    except psycopg.Error as refused:
        key.hands.rollback()
        key.other.rollback()
        assert key.stored() == before, key.topic
        return refused.sqlstate or str(refused), set()
    return NOTHING if key.stored() == before else key.state, locked


def _situations(numbering: str) -> list[str]:
    return [situation for situation in SITUATIONS if numbering == "given" or situation not in GAPS]


@pytest.mark.each_value
@pytest.mark.parametrize("numbering", NUMBERINGS)
@pytest.mark.parametrize("matrix", MATRICES, ids=lambda table: table.columns[0].replace(" ", "_"))
def test_every_event_does_in_every_situation_what_the_page_says(
    matrix: Table, numbering: str, witness: Database
) -> None:
    oracle = Oracle(witness)
    hands, other = _sessions(witness)
    wrong = []
    locks = defaultdict[str, set[str]](set)
    for event in matrix.columns:
        refused = _refused_here(event, numbering)
        for situation in _situations(numbering) if refused != CANNOT_COME else ():
            key = Key(witness, hands, other, f"{situation}, {event}", given=numbering == "given")
            SITUATIONS[situation](key)
            hands.commit()
            assert key.state == situation.partition(":")[0], key.topic
            said = refused or matrix.cell(situation, event)
            found, locked = _let_happen(key, event)
            locks[event] |= locked
            if found != said:
                wrong.append(f"{key.topic}: the page says {said}, the key says {found}")
    assert wrong == []
    _check(witness, oracle)
    if numbering == "given":
        _check_locks(locks)


def _check(database: Database, oracle: Oracle) -> None:
    """What is stored of every key is what the page says of its state, and breaks no promise."""
    states = " ".join(f"WHEN {says.strip('`')} THEN '{state}'" for state, (says, _) in STORED.rows.items())
    tickets = " ".join(
        f"WHEN '{state}' THEN {'there IS NULL' if says == 'no ticket' else says.strip('`')}"
        for state, (_, says) in STORED.rows.items()
    )
    other = database.execute(f"""
        SELECT k.*, t.* FROM (
            SELECT topic, key, inturn.key_state(c) AS state, CASE {states} END AS said
            FROM inturn.key_cursor c) k
        LEFT JOIN LATERAL (
            SELECT t.ready_at, m.lease_until, m.paused_until, m.waiting_at, true AS there
            FROM inturn.ticket t
            LEFT JOIN inturn.key_mark m ON (m.topic, m.key, m.epoch) = (t.topic, t.key, t.epoch)
            WHERE (t.topic, t.key) = (k.topic, k.key)) t ON true
        WHERE k.said IS DISTINCT FROM k.state OR (CASE k.state {tickets} END) IS NOT TRUE
    """)
    assert other == []
    found = database.execute("SELECT v.* FROM inturn.topic t CROSS JOIN LATERAL inturn.verify(t.name) v")
    assert found == []
    oracle.check()


def _check_locks(found: dict[str, set[str]]) -> None:
    """Each event has locked what the page says, in one situation or another."""
    rows = {"callers' row": "key_sequence", "ticket": "ticket"}
    said = {
        event: {table for row, table in rows.items() if row in _about(event, "locks")}
        for event in found
        if "locks" in ABOUT[event].columns
        and _refused_here(event, "given") is None  # it is not seen what a refused one has locked
    }
    assert {event: found[event] for event in said} == said


@pytest.mark.parametrize("numbering", NUMBERINGS)
def test_a_key_begins_as_the_page_says(numbering: str, witness: Database) -> None:
    hands, other = _sessions(witness)
    begins = [(to, event) for start, to, event in ARROWS if start == "[*]"]
    assert begins != []
    for to, event in begins:
        key = Key(witness, hands, other, event, given=numbering == "given")
        found, locked = _let_happen(key, event)
        assert found == (_refused_here(event, numbering) or to)
        assert locked == set(), "nobody else knows of it yet"
    for function in ("pause", "resume", "retry"):
        assert refusal(witness, f"SELECT inturn.{function}('orders', 'x')").sqlstate == "IT040"
    assert refusal(witness, "SELECT inturn.renew('orders', 'x', 1)").sqlstate == "IT030"


def test_the_page_has_every_event_once_and_no_situation_that_is_not_there() -> None:
    assert sorted(column for matrix in MATRICES for column in matrix.columns) == sorted(EVENTS)
    assert ABOUT.keys() == EVENTS.keys()
    for matrix in MATRICES:
        assert matrix.rows.keys() - {*SITUATIONS, ANY_OTHER} == set()
        if ANY_OTHER not in matrix.rows:
            assert matrix.rows.keys() == SITUATIONS.keys()


def test_the_page_has_every_state_and_the_diagram_no_arrow_that_the_tables_have_not() -> None:
    states = {situation.partition(":")[0] for situation in SITUATIONS}
    assert STORED.rows.keys() == states == {to for _, to, _ in ARROWS}
    cells = {
        (situation.partition(":")[0], matrix.cell(situation, event), event)
        for matrix in MATRICES
        for event in matrix.columns
        for situation in SITUATIONS
    }
    assert {arrow for arrow in ARROWS if arrow[0] != "[*]"} - cells == set()


def test_the_functions_that_the_page_names_are_there_and_every_action_of_operators_is_named(
    database: Database,
) -> None:
    named = {name for event in EVENTS for name in re.findall(r"`(\w+)`", _about(event, "functions"))}
    there = database.execute(
        "SELECT DISTINCT proname::text FROM pg_proc WHERE pronamespace = 'inturn'::regnamespace"
    )
    assert named - {name for (name,) in there} == set()
    assert OPERATOR_ACTIONS - named == {"cancel_rest_all"}, "it does to each key what cancel_rest does"
