"""`inturn prune`, `inturn apply --prune`, and what `inturn show` says of a pruned key."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from support.database import Database, until
from support.logins import login
from support.process import inturn_apply, run_inturn


class Ran(NamedTuple):
    """How a command ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def _run(database: Database, *arguments: str, dsn: str = "") -> Ran:
    return Ran(*run_inturn(dsn or database.dsn, *arguments))


def _applied(witness: Database) -> None:
    witness.execute("SELECT inturn.append('orders', 'a', 'insert') FROM generate_series(1, 3)")
    witness.execute("CALL inturn.apply()")


def test_prune_says_what_went_and_show_where_the_history_begins(witness: Database) -> None:
    _applied(witness)
    done = _run(witness, "prune", "--topic", "orders", "--older-than", "0 s", "--json")
    assert {k: v for k, v in json.loads(done.stdout).items() if k != "seconds"} == {
        "commands": 3,
        "turns": 0,
        "forgotten": 0,
        "done": True,
    }
    shown = _run(witness, "show", "a").stdout
    assert "history  begins at 4: what came before was pruned" in shown
    assert "history begins at 4" in shown
    timeline = json.loads(_run(witness, "show", "a", "--json").stdout)[0]["timeline"]
    assert [entry["kind"] for entry in timeline] == ["turn", "history"]


def test_prune_leaves_alone_what_has_no_retention_and_says_so_when_asked_for(witness: Database) -> None:
    _applied(witness)
    said = _run(witness, "prune").stdout
    assert said.startswith("pruned 0 commands and 0 turns")
    assert said.endswith("; no topic has a retain, so all is kept: inturn topic set NAME --retain 30d\n")
    assert "retain" not in _run(witness, "prune", "--older-than", "1d").stdout
    refused = _run(witness, "prune", "--topic", "orders")
    assert refused.returncode == 1
    assert "inturn topic set --retain 30d orders" in refused.stderr
    mistyped = _run(witness, "prune", "--older-than", "soon")
    assert mistyped.returncode == 2
    assert "--older-than cannot be 'soon'" in mistyped.stderr
    unknown = _run(witness, "prune", "--topic", "none", "--older-than", "1d")
    assert (unknown.returncode, "Traceback" in unknown.stderr) == (1, False)
    assert witness.value("SELECT count(*) FROM inturn.command_log") == 3


def test_a_prune_whose_time_is_over_says_that_there_may_be_more(witness: Database) -> None:
    _applied(witness)
    bounded = ("prune", "--older-than", "0 s", "--max-seconds", "1e-9")
    assert _run(witness, *bounded).stdout.endswith("; the time was over: run it again\n")
    assert json.loads(_run(witness, *bounded, "--json").stdout)["done"] is False
    assert witness.value("SELECT count(*) FROM inturn.command_log") == 3


def test_a_retention_is_set_shown_and_taken_away(witness: Database) -> None:
    _run(witness, "topic", "set", "orders", "--retain", "30d", "--forget-idle-after", "90d")
    shown = _run(witness, "topic", "show", "orders").stdout
    assert {("retain", "30d"), ("retain-idempotency", "as retain"), ("forget-idle-after", "90d")} <= {
        tuple(re.split(r"\s{2,}", line)) for line in shown.splitlines()
    }
    assert _run(witness, "topic", "set", "orders", "--retain", "0").returncode == 1
    _run(witness, "topic", "set", "orders", "--retain", "0", "--forget-idle-after", "0")
    assert witness.execute("SELECT retain, forget_idle_after FROM inturn.topic") == [(None, None)]


def test_an_applier_prunes_when_nothing_is_ready(witness: Database) -> None:
    witness.execute("UPDATE inturn.topic SET retain = '1 microsecond'")
    witness.execute("SELECT inturn.append('orders', 'k' || n, 'insert') FROM generate_series(1, 300) n")
    assert _run(witness, "apply", "--drain").returncode == 0
    assert witness.value("SELECT count(*) FROM inturn.command_log") == 300
    assert _run(witness, "apply", "--drain", "--prune").returncode == 0
    assert witness.value("SELECT count(*) FROM inturn.command_log") == 0
    assert witness.value("SELECT count(*) FROM app.witness") == 300
    witness.execute("SELECT inturn.append('orders', 'k' || n, 'insert') FROM generate_series(1, 300) n")
    with inturn_apply(witness.dsn, "--prune", "--processes", "2", app=None):
        until(lambda: witness.value("SELECT count(*) FROM inturn.command_log") == 0, "daemons prune too")
    assert witness.value("SELECT count(*) FROM app.witness") == 600


def test_an_operator_may_prune_and_nobody_else(witness: Database) -> None:
    _applied(witness)
    call = ("prune", "--topic", "orders", "--older-than", "0 s")
    for role in ("inturn_caller", "inturn_applier"):
        assert _run(witness, *call, dsn=login(witness, role)).returncode == 1
    assert _run(witness, *call, dsn=login(witness, "inturn_operator")).returncode == 0
    assert witness.value("SELECT count(*) FROM inturn.command_log") == 0
