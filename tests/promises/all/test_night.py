"""A night on call: six things stand still at once, and nothing but `inturn` is used to mend them.

Every command that is typed is one that `why` printed, or one of those of `inturn --help`.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict
from support.database import Database, Session, until
from support.forked import folder_of_inturn
from support.process import InturnProcess, inturn_apply
from support.roles import CALLER
from support.shop import append, applied, gate_shut, open_shop, wait_at_gate

FOUND = 7


class Operator:
    """Somebody at a shell."""

    def __init__(self, database: Database) -> None:
        known = conninfo_to_dict(database.operator_dsn)
        binaries = f"{folder_of_inturn()}{os.pathsep}{database.server.binaries}"
        self._environment = {
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            **{name: os.environ[name] for name in ("HOME", "LANG", "LC_ALL") if name in os.environ},
            "INTURN_DSN": database.operator_dsn,
            **{
                f"PG{name.upper().replace('DBNAME', 'DATABASE')}": str(value) for name, value in known.items()
            },
        }

    def types(self, line: str, code: int = 0) -> str:
        """Run a line in a shell; return what it printed."""
        run = subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, check=False, env=self._environment
        )
        assert run.returncode == code, (line, run.stdout, run.stderr)
        return run.stdout

    def asks_why(self, key: str) -> dict[str, Any]:
        """Ask once."""
        (answer,) = json.loads(self.types(f"inturn why {key} --json"))
        assert isinstance(answer, dict)
        return answer


def why(answer: dict[str, Any], cause: str, *facts: str) -> list[str]:
    """Check the cause that was named, and that it says these facts; return the commands to type."""
    assert answer["cause"] == cause, answer
    for fact in facts:
        assert fact in answer["says"], answer["says"]
    return [line.partition("  # ")[0] for line in answer["to_do"]]


@contextmanager
def load(database: Database) -> Iterator[None]:
    """Callers append to twenty keys of both topics for as long as the block runs."""
    over = threading.Event()

    def call(number: int) -> None:
        connection = database.connect(user=CALLER)
        for turn in range(100_000):
            if over.wait(0.1):
                return
            for topic in ("shop", "bills"):
                connection.execute(
                    "SELECT inturn.append(%s, %s, 'insert')",
                    [topic, f"{topic}-load-{(number + turn * 3) % 20}"],
                )

    threads = [threading.Thread(target=call, args=[number], daemon=True) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


@pytest.fixture
def shop(database: Database) -> Database:
    """Topic shop, applied by handlers in Python; topic bills, by a SQL function; a command is tried twice."""
    open_shop(database, settings="max_attempts => 2, backoff_base => '10 ms'")
    database.execute("SELECT inturn.create_topic('bills', 'sql:app.apply', max_attempts => 2)")
    for key in ("poison", "hung", "mistake", "unserved"):
        append(database, key, "insert")
    append(database, "open", "insert")
    return database


def drained(database: Database) -> bool:
    return not database.value("SELECT count(*) FROM inturn.key_cursor WHERE ready_at IS NOT NULL")


def backends(database: Database) -> int:
    return int(
        database.value(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = 'inturn apply'"
        )
    )


# Some fifty processes.
@pytest.mark.timeout(600)
@pytest.mark.needs_session("it waits for the sessions of killed processes to be gone: a pooler keeps its own")
def test_a_night_on_call(shop: Database) -> None:
    ann = Operator(shop)
    importer: Session = shop.session(application_name="importer")
    with load(shop):
        # At the end of the block they are killed, -9.
        with inturn_apply(shop.dsn, "--workers", "2"), inturn_apply(shop.dsn, "--workers", "2"):
            until(lambda: applied(shop, "open") and applied(shop, "mistake"), "the appliers at work")
            _everything_goes_wrong(shop, importer, ann)
        until(lambda: not backends(shop), "the last sign of the fleet to be gone")

        # A dead fleet.
        append(shop, "unserved", "update")
        to_do = why(ann.asks_why("unserved"), "no_applier", "target python")
        assert to_do[0].startswith("inturn apply --app MODULE:APPLIER")
        again = to_do[0].split()
        again[again.index("--app") + 1] = "support.shop:applier"
        ann.types("inturn keys --check --lagging 1", code=FOUND)
        with InturnProcess(shop.dsn, *again[1:]), InturnProcess(shop.dsn, "apply", "--topic", "bills"):
            until(lambda: applied(shop, "unserved") == [1, 2], "the new fleet")
    with InturnProcess(shop.dsn, "apply", "--app", "support.shop:applier"):
        until(lambda: drained(shop), "everything applied")

    # Nothing is left, in order, once; and the story can be read.
    ann.types("inturn keys --check --held --retrying --paused --ready")
    assert "no violation" in ann.types("inturn verify").lower()
    for key, expected in {
        "poison": [1, 2, 3],
        "hung": [1, 2, 3],
        "open": [1, 2, 3],
        "mistake": [1, 3, 4],
        "unserved": [1, 2],
    }.items():
        assert applied(shop, key) == expected, key
    _everybody_elses_order_is_exact(shop)
    _the_story_is_told(shop)


def _everything_goes_wrong(shop: Database, importer: Session, ann: Operator) -> None:
    """All at once, explained at the first asking; then what can be put right while the fleet lives."""
    append(shop, "poison", "fail", "delete")
    ann.types("inturn pause mistake --reason 'looking into ticket 7' --as ann")
    append(shop, "mistake", "update", "delete")
    ann.types("inturn pause --topic bills --reason 'month end' --as ann")
    shop.execute("SELECT inturn.append('bills', 'bill', 'insert')")
    importer.execute("SELECT inturn.append('shop', 'open', 'update')")
    until(lambda: shop.value("SELECT held_at FROM inturn.key_cursor WHERE key = 'poison'"), "poison held")
    until(lambda: drained_key(shop, "open"), "only the open append left on its key")
    with gate_shut(shop) as culprit:
        append(shop, "hung", "before", "delete")
        wait_at_gate(shop)

        held = why(ann.asks_why("poison"), "held", "2 (fail)", "ValueError: refused poison")
        stuck = why(ann.asks_why("hung"), "applying", f"backend {culprit.pid}")
        why(ann.asks_why("mistake"), "paused", "ann", "looking into ticket 7")
        month_end = why(ann.asks_why("bill"), "topic_paused", "ann", "month end")
        open_append = why(ann.asks_why("open"), "appending", f"importer (backend {importer.pid}")
        assert "paused" in ann.types("inturn status")

        # A hung handler: end what it waits for, with the command that why printed.
        ann.types(next(line for line in stuck if str(culprit.pid) in line))
        until(lambda: applied(shop, "hung") == [1, 2, 3], "the hung handler to go on")
        culprit.connection.close()

    # A poison command: amended, and tried again.
    assert any(line.startswith("inturn retry ") for line in held)
    ann.types("inturn amend poison 2 --name update --reason 'ticket 8' --as ann")
    ann.types(next(line for line in held if line.startswith("inturn retry ")) + " --as ann")
    # A caller that never commits: ended; what it had appended never was.
    ann.types(next(line for line in open_append if str(importer.pid) in line))
    append(shop, "open", "update", "delete")
    # A mistaken skip: seen, and replayed.
    ann.types("inturn skip mistake --seq 2 --reason 'ticket 7' --as ann")
    ann.types("inturn replay mistake 2 --reason 'ticket 7: it was needed' --as ann")
    ann.types("inturn resume mistake --as ann")
    # A paused topic.
    ann.types(next(line for line in month_end if line.startswith("inturn resume ")) + " --as ann")
    until(lambda: applied(shop, "mistake") == [1, 3, 4] and applied(shop, "bill") == [1], "they go on")


def drained_key(database: Database, key: str) -> bool:
    return bool(database.value("SELECT applied_seq = 1 FROM inturn.key_cursor WHERE key = %s", [key]))


def _everybody_elses_order_is_exact(shop: Database) -> None:
    rows = shop.execute("""
        SELECT l.key, max(l.seq), (
            SELECT array_agg(w.seq ORDER BY w.id) FROM app.witness w WHERE w.key = l.key)
        FROM inturn.command_log l WHERE l.key LIKE '%load%' GROUP BY 1
    """)
    assert len(rows) == 40
    for key, last, effects in rows:
        assert effects == list(range(1, last + 1)), key


def _the_story_is_told(shop: Database) -> None:
    story = shop.execute(
        "SELECT action, topic, key, seq, reason FROM inturn.operator_action"
        " WHERE acting_as = 'ann' ORDER BY acted_at"
    )
    assert story == [
        ("pause", "shop", "mistake", None, "looking into ticket 7"),
        ("pause", "bills", "", None, "month end"),
        ("amend", "shop", "poison", 2, "ticket 8"),
        ("retry", "shop", "poison", 2, None),
        ("skip", "shop", "mistake", 2, "ticket 7"),
        ("replay", "shop", "mistake", 2, "ticket 7: it was needed"),
        ("resume", "shop", "mistake", None, None),
        ("resume", "bills", "", None, None),
    ]
    assert shop.value("SELECT count(*) FROM inturn.operator_action WHERE action <> 'create'") == len(story)
    assert shop.execute("SELECT before, after FROM inturn.operator_action WHERE action = 'amend'") == [
        ({"name": "fail", "payload": {}}, {"name": "update", "payload": {}})
    ]
    assert shop.execute("SELECT key, seq, skipped_by, reason FROM inturn.skip") == [
        ("mistake", 2, "operator", "ticket 7")
    ]
