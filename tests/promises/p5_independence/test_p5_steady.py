"""P5: past its start, an applier pays nothing for finding out which key ends a process, as counts show."""

from __future__ import annotations

import re
import threading
from collections import Counter
from typing import Any, TypeVar

import pytest
from support import roles, shop
from support.database import Database, until
from support.place import ROOT

from inturn.applier.calls.call import Call
from inturn.applier.inside.visits import CAREFUL_KEYS

_T = TypeVar("_T")
_KEYS = 30
#: What claims keys, applies their commands and records it, as opposed to what looks for work.
_CHAPTERS = ("turn", "lease", "sql_target")
_OF_TURNS = {path.stem for chapter in _CHAPTERS for path in (ROOT / "schema/sql" / chapter).glob("*.sql")}
_COUNTED = """
    CREATE SEQUENCE app.marked;
    SELECT nextval('app.marked');
    GRANT USAGE ON SCHEMA app TO PUBLIC;
    GRANT USAGE ON SEQUENCE app.marked TO PUBLIC;
    CREATE FUNCTION app.count_mark() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM nextval('app.marked'); RETURN NULL; END $$;
    CREATE TRIGGER count AFTER INSERT OR UPDATE ON inturn.key_mark
        FOR EACH ROW EXECUTE FUNCTION app.count_mark();
"""


def _watched(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return what counts the statements by which workers have done something to a key, by their function."""
    seen, run = Counter[str](), Call.on

    def on(call: Call[_T], connection: Any) -> _T:
        said = run(call, connection)
        found = {*re.findall(r"\.(\w+)\(", call.query.as_string(None))} & _OF_TURNS
        claimed_nothing = said == [] or getattr(said, "keys", None) == 0
        claimed_nothing |= said is None and "_claim_alone" in found
        if threading.current_thread().name.startswith("inturn-worker") and not claimed_nothing:
            seen.update(found)
        return said

    monkeypatch.setattr(Call, "on", on)
    return seen


def _apply(database: Database, prefix: str, count: int) -> None:
    shop.append_keys(database, count, prefix=prefix)
    until(lambda: not database.value("SELECT count(*) FROM inturn.ticket"), "all of them")


@pytest.mark.parametrize("target", ["python", "sql"])
def test_p5_past_its_start_an_applier_runs_no_statement_more_and_marks_no_key(
    database: Database, target: shop.Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Than one that never took a key alone. Each key has a transaction of its own, so that they compare."""
    seen = _watched(monkeypatch)
    shop.open_shop(database, target=target)
    database.execute(_COUNTED)
    ran = []
    for steady in (True, False):
        database.execute("DELETE FROM inturn.applier")  # nobody is known: there is reason to be careful
        with shop.at_work(database, steady=steady, max_keys=1):
            seen.clear()
            _apply(database, f"first {steady} ", CAREFUL_KEYS)
            assert seen["_claim_alone"] == (0 if steady else CAREFUL_KEYS)
            seen.clear()
            marked = database.value("SELECT last_value FROM app.marked")
            _apply(database, f"then {steady} ", _KEYS)
            assert database.value("SELECT last_value FROM app.marked") == marked
            ran.append(Counter(seen))
        turns = "SELECT count(*), count(DISTINCT xmin::text) FROM inturn.turn WHERE starts_with(key, %s)"
        assert database.execute(turns, [f"then {steady} "]) == [(_KEYS, _KEYS)]
    assert ran[0] == ran[1]
    assert set(ran[0].values()) == {_KEYS}


def test_p5_a_call_after_one_that_ended_well_marks_no_key(database: Database) -> None:
    shop.open_shop(database, target="sql")
    database.execute(_COUNTED)
    marks = [database.value("SELECT last_value FROM app.marked")]
    for prefix in ("first ", "then "):
        shop.append_keys(database, _KEYS, prefix=prefix)
        with database.connect(user=roles.APPLIER) as session:
            session.execute("SET inturn.careful_keys = 20")  # the default
            session.execute("CALL inturn.apply()")
        marks.append(database.value("SELECT last_value FROM app.marked"))
    assert database.value("SELECT count(*) FROM inturn.ticket") == 0
    assert marks[0] < marks[1] == marks[2]
