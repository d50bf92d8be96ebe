"""What operators see of commands that have arrived and have no number yet, and what it costs."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from support.arrivals import appended, arrive, number, numbered
from support.database import Database
from support.logins import connect_as
from support.plans import cost, explain
from support.process import run_inturn
from support.roles import DEPLOYER, OPERATOR, OWNER

from inturn.cli.terminal.key_text import escaped


@pytest.fixture
def posts(witness: Database) -> Database:
    """The orders, and topic `posts`, which numbers on arrival and has the same target."""
    witness.execute("SELECT inturn.create_topic('posts', 'sql:app.apply_order', numbering => 'arrival')")
    return witness


def _why(posts: Database, key: str) -> tuple[str, str, dict[str, Any]]:
    (row,) = posts.execute("SELECT cause, says, details FROM inturn.why(NULL, %s)", [key])
    return row[0], row[1], row[2]


def _announce(posts: Database) -> None:
    posts.execute(
        "SELECT inturn.announce_applier('a', '{posts}', 'host', 1, version_num) FROM inturn.schema_version"
    )


@pytest.mark.parametrize("known", [False, True], ids=["new key", "known key"])
def test_why_says_that_nobody_is_there_to_number(posts: Database, known: bool) -> None:
    if known:
        appended(posts, "x", "a")
        posts.execute("CALL inturn.apply()")
        posts.execute("DELETE FROM inturn.applier")
    arrive(posts, "x", "b")
    arrive(posts, "x", "c")
    cause, says, details = _why(posts, "x")
    assert cause == "no_applier"
    assert says.startswith(
        "2 commands have arrived on it and have no number yet: no applier serves its topic"
    )
    assert (details["arrived"], details["left_because"]) == (2, None)


def test_why_says_that_the_next_pass_numbers(posts: Database) -> None:
    _announce(posts)
    arrive(posts, "x", "a")
    cause, says, _ = _why(posts, "x")
    assert cause == "not_numbered"
    assert says == (
        "1 command has arrived on it and has no number yet: "
        "the next pass of an applier numbers them, usually within milliseconds"
    )


def test_why_names_who_has_the_key_locked(posts: Database) -> None:
    _announce(posts)
    appended(posts, "x", "a")
    posts.execute("CALL inturn.apply()")
    operator = posts.session()
    operator.execute("SELECT FROM inturn.key_sequence WHERE key = 'x' FOR UPDATE")
    arrive(posts, "x", "b")
    assert number(posts) == 0
    cause, says, details = _why(posts, "x")
    assert (cause, details["left_because"]) == ("not_numbered", "locked")
    assert "the key is locked by a session" in says
    assert f"(backend {operator.pid} of" in says
    assert re.search(
        r"\narrived  1 command has no number yet, the first for \d+s\n", run_inturn(posts.dsn, "show", "x")[1]
    )
    assert json.loads(run_inturn(posts.dsn, "show", "x", "--json")[1])[0]["arrived"] == 1
    operator.rollback()
    assert "whoever had it locked has let go" in _why(posts, "x")[1]


def test_why_names_whose_pass_is_open(posts: Database) -> None:
    appended(posts, "x", "a")
    posts.execute("CALL inturn.apply()")
    applier = posts.session()
    arrive(posts, "y", "b")
    assert number(applier) == 1
    arrive(posts, "x", "c")
    cause, says, _ = _why(posts, "x")
    assert cause == "not_numbered"
    assert "they are numbered by a session" in says
    assert f"(backend {applier.pid} of" in says


def test_an_applier_counts_what_has_no_number(posts: Database) -> None:
    arrive(posts, "x", "a")
    with connect_as(posts, "inturn_applier") as applier:
        assert applier.execute("SELECT inturn.pending_commands('{posts}')").fetchone() == (1,)


def test_status_counts_what_has_no_number_and_checks_it(posts: Database) -> None:
    appended(posts, "x", "a")
    posts.execute("CALL inturn.apply()")
    posts.execute("DELETE FROM inturn.applier")
    assert run_inturn(posts.dsn, "status", "--check")[:2] == (0, "")
    arrive(posts, "x", "b")
    posts.execute("UPDATE inturn.intake SET created_at = now() - interval '2 hours 5 minutes'")
    assert (
        "\ntopic posts: 1 command that arrived 2h ago has no number yet\n"
        in run_inturn(posts.dsn, "status")[1]
    )
    code, out, _ = run_inturn(posts.dsn, "status", "--check", "--older-than", "1m")
    assert code == 9
    assert out.splitlines() == [
        "topic posts: 1 command that arrived 2h ago has no number yet, and no applier of it is alive",
        "topic posts: a command has been pending for 2h, longer than 1m",
    ]
    arrive(posts, "y", "c")
    out = run_inturn(posts.dsn, "status")[1]
    assert "topic posts: 2 commands that arrived have no number yet, the first for 2h\n" in out
    document = json.loads(run_inturn(posts.dsn, "status", "--topic", "posts", "--json")[1])
    assert document["topics"][0]["arrived"] == 2
    posts.execute("SELECT inturn.pause_topic('posts')")
    assert "no applier" not in run_inturn(posts.dsn, "status", "--check")[1]
    assert posts.value("SELECT inturn.pending_commands('{posts}')") == 2


_LISTED = "SELECT key, state, applied_seq, last_seq, pending FROM inturn.list_keys({})"


def test_keys_lists_what_has_no_number_yet_before_the_idle_ones(posts: Database) -> None:
    for key in ("known", "quiet"):
        appended(posts, key, "a")
    posts.execute("CALL inturn.apply()")
    for key in ("known", "x", "y", "y"):
        arrive(posts, key, "a")
    posts.execute("SELECT inturn.append('orders', 'ready', 'a')")
    posts.execute("UPDATE inturn.intake SET created_at = now() - interval '2 h' WHERE key = 'y'")
    x, y = ("x", "arrived", 0, 0, 1), ("y", "arrived", 0, 0, 2)
    ready, known, quiet = (
        ("ready", "ready", 0, 1, 1),
        ("known", "arrived", 1, 1, 1),
        ("quiet", "idle", 1, 1, 0),
    )
    assert posts.execute(_LISTED.format("")) == [ready, y, known, x, quiet]
    for arguments, found in (
        ("of_state => 'arrived'", [y, known, x]),
        ("of_state => 'idle'", [quiet]),
        ("of_state => 'idle', sort_by => 'lag'", [quiet]),
        ("'posts', 'idle,arrived'", [y, known, x, quiet]),
        ("'orders', 'arrived'", []),
        ("max_keys => 2", [ready, y]),
        ("of_like => 'x%'", [x]),
        ("'posts', older_than => '1 h'", [y]),
        ("'posts', min_lag => 2", [y]),
        ("'posts', of_error => '%'", []),
        ("'posts', 'arrived', sort_by => 'lag'", [y, known, x]),
        ("'posts', 'arrived', sort_by => 'age', max_keys => 1", [y]),
        ("'posts', 'arrived', sort_by => 'attempts'", [y, known, x]),
    ):
        assert posts.execute(_LISTED.format(arguments)) == found, arguments
    arrive(posts, "deep", "a")
    posts.execute("SELECT inturn.append('posts', 'deep', 'a') FROM generate_series(1, 39)")
    assert posts.execute(_LISTED.format("min_lag => 33, sort_by => 'lag'")) == [("deep", "arrived", 0, 0, 40)]
    waits = "SELECT now() - oldest_pending_at > interval '1 h' FROM inturn.list_keys(of_like => 'y')"
    assert posts.value(waits)
    number(posts)
    assert posts.execute(_LISTED.format("of_state => 'arrived'")) == []


def test_keys_leaves_out_what_has_arrived_in_topics_of_others(posts: Database) -> None:
    arrive(posts, "x", "a")
    posts.execute("SELECT inturn.grant_topic('posts', 'operator', %s)", [DEPLOYER])
    with posts.connect(user=OPERATOR) as operator:
        assert operator.execute("SELECT key FROM inturn.list_keys()").fetchall() == []


def test_the_command_line_knows_a_key_that_has_no_number_yet(posts: Database) -> None:
    appended(posts, "known", "a")
    posts.execute("CALL inturn.apply()")
    arrive(posts, "known", "b")
    document = json.loads(run_inturn(posts.dsn, "show", "known", "--json")[1])[0]
    assert (document["state"], document["applied_seq"], document["arrived"]) == ("arrived", 1, 1)
    for key in ("x", "new\nline"):
        arrive(posts, key, "a")
    posts.execute("UPDATE inturn.intake SET created_at = now() - interval '2 h'")
    out = run_inturn(posts.dsn, "keys", "--arrived", "--like", "x")[1]
    assert [line.split() for line in out.splitlines()] == [
        ["topic", "key", "state", "applied", "lag", "age"],
        ["posts", "x", "arrived", "0/0", "1", "2h"],
    ]
    assert run_inturn(posts.dsn, "keys", "--arrived", "--older-than", "1h", "--check")[0] == 7
    assert run_inturn(posts.dsn, "show", "x")[1].splitlines() == [
        "topic    posts",
        "key      x",
        "state    arrived",
        "applied  0 of 0",
        "arrived  1 command has no number yet, the first for 2h",
    ]
    (document,) = json.loads(run_inturn(posts.dsn, "show", "x", "--topic", "posts", "--json")[1])
    assert (document["state"], document["arrived"], document["commands"]) == ("arrived", 1, [])
    # As it is printed, it is typed.
    (listed,) = json.loads(run_inturn(posts.dsn, "keys", "--like", "new%", "--json")[1])
    assert run_inturn(posts.dsn, "show", escaped(listed["key"]))[0] == 0


def test_verify_finds_what_no_pass_will_look_at(posts: Database) -> None:
    for key in "xy":
        arrive(posts, key, "a")
    assert number(posts) == 2
    arrive(posts, "x", "b")
    assert posts.execute("SELECT * FROM inturn.verify('posts')") == []
    posts.execute("UPDATE inturn.intake SET xid = '3'")
    (found,) = posts.execute("SELECT violation, key, rows FROM inturn.verify('posts')")
    assert found[:2] == ("arrival-stuck", "x")
    assert [row["table"] for row in found[2]] == ["key_sequence", "intake"]
    posts.execute("UPDATE inturn.intake SET left_because = 'locked'")
    assert posts.execute("SELECT * FROM inturn.verify('posts')") == []
    posts.execute("UPDATE inturn.key_sequence SET arrival = false WHERE key = 'y'")
    (found,) = posts.execute("SELECT violation, key FROM inturn.verify('posts')")
    assert found == ("numbering-mixed", "y")


def test_the_command_line_appends_and_says_no_number(posts: Database) -> None:
    assert run_inturn(posts.dsn, "append", "posts", "x", "a") == (0, "", "")
    document = json.loads(run_inturn(posts.dsn, "append", "posts", "x", "b", "--json")[1])
    assert document == {"topic": "posts", "key": "x", "seq": None}
    assert number(posts) == 2
    assert numbered(posts, "x") == ["a", "b"]


def test_a_pass_looks_at_what_is_new_however_long_a_snapshot_is_held(posts: Database) -> None:
    snapshot = posts.session()
    snapshot.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    snapshot.execute("SELECT count(*) FROM inturn.topic")
    # A transaction that had begun to append before all of them, and goes on.
    long = posts.session()
    long.execute("SELECT inturn.append('posts', 'long', 'a') FROM generate_series(1, 5000)")
    look = "SELECT inturn._number_topic('posts', 10000)"
    looker = posts.connect(user=OWNER)
    explain(looker, look)  # it reads what it knows of the catalog
    costs = []
    for _ in range(10):
        posts.execute("SELECT inturn.append('posts', 'k' || n, 'a') FROM generate_series(1, 1000) n")
        assert number(posts) == 1000
        costs.append(cost(looker, look))
    # Nothing is new: neither the ten thousand that were moved are looked at, nor the five thousand to come.
    assert max(costs) < 40, costs
    long.commit()
    assert number(posts) == 5000
    snapshot.rollback()


def test_a_pass_over_topics_that_do_not_number_on_arrival_costs_nothing(witness: Database) -> None:
    witness.execute(
        "SELECT inturn.create_topic('t' || n, numbering => 'assigned') FROM generate_series(1, 300) n"
    )
    look = "SELECT inturn._number_arrivals(ARRAY(SELECT name FROM inturn.topic OFFSET 0))"
    with witness.connect(user=OWNER) as connection:
        explain(connection, look)
        without = cost(connection, "SELECT ARRAY(SELECT name FROM inturn.topic OFFSET 0)")
        assert cost(connection, look) - without <= 3
