"""list_keys: what it finds, what it refuses, and that each state is read from its own index."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from support.crowd_of_keys import CROWDED, FEW, STATES, crowd_of_keys
from support.database import Database, come_first
from support.plans import believe, buffers, cost, explain, nodes
from support.race import replaced
from support.refusal import refusal
from support.roles import APPLIER, OPERATOR, OWNER
from support.server import Server

#: What the planner may believe: (relpages, reltuples) of our tables.
_STATISTICS = {
    "never analyzed": (0, -1),
    "analyzed when empty": (0, 0),
    "a thousand million rows": (1, 1e9),
    "fresh": None,
}


@pytest.fixture(scope="module")
def mostly_ready(server: Server, template: str) -> Iterator[Database]:
    """100,000 ready keys, and few in every other state."""
    database = crowd_of_keys(server, template, "list_ready", ready=100_000)
    yield database
    database.drop()


@pytest.fixture(scope="module")
def mostly_idle(server: Server, template: str) -> Iterator[Database]:
    """100,000 idle keys, and few in every other state."""
    database = crowd_of_keys(server, template, "list_idle", idle=100_000)
    yield database
    database.drop()


@contextmanager
def _believing(database: Database, statistics: str) -> Iterator[psycopg.Connection[Any]]:
    believe(database, CROWDED, _STATISTICS[statistics])
    with database.connect(autocommit=False, user=OWNER) as connection:
        yield connection
        connection.rollback()


def _settings(connection: psycopg.Connection[Any]) -> None:
    """Take over the settings that the function runs with."""
    row = connection.execute(
        "SELECT proconfig FROM pg_proc WHERE oid = 'inturn.list_keys'::regproc"
    ).fetchone()
    assert row is not None
    for setting in row[0]:
        name, _, value = setting.partition("=")
        connection.execute(f"SET LOCAL {name} = {value}")


_INDEXES = {
    "held": "key_mark_held",
    "retrying": "key_mark_retrying",
    "paused": "key_mark_paused",
    "waiting": "key_mark_waiting",
    "leased": "key_mark_leased",
    "ready": "ticket_ready",
    "idle": "key_sequence_pkey",
}


@pytest.mark.each_value
@pytest.mark.parametrize("crowd", ["mostly_ready", "mostly_idle"])
@pytest.mark.parametrize("statistics", _STATISTICS)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("limit", [5, 20_000])
def test_each_state_is_read_from_its_own_index(
    request: pytest.FixtureRequest, crowd: str, statistics: str, state: str, limit: int
) -> None:
    with _believing(request.getfixturevalue(crowd), statistics) as connection:
        _settings(connection)
        # A custom plan, as EXECUTE in the function makes.
        connection.execute("SET LOCAL plan_cache_mode = force_custom_plan")
        query = connection.execute("SELECT inturn._keys_query(%s)", [state]).fetchone()
        assert query is not None
        types = "text, text, bigint, timestamptz, bigint, text, timestamptz, jsonb"
        connection.execute(f"PREPARE list ({types}) AS {query[0]}")
        plan = explain(connection, f"EXECUTE list ('shop', NULL, NULL, NULL, {limit}, NULL, now(), '{{}}')")
    scans = [step for step in nodes(plan) if step.get("Relation Name") in CROWDED]
    assert scans[0]["Index Name"] == _INDEXES[state]
    assert ("(topic)::text =" if state == "ready" else "topic =") in scans[0]["Index Cond"]
    # All else is looked up for each key that it finds.
    for scan in scans[1:]:
        assert scan["Index Name"].endswith("_pkey")
        assert re.search(r"topic = .*key = ", scan["Index Cond"])
    # In the index's own order, or a limit would not end the walk.
    assert "Sort" not in [step["Node Type"] for step in nodes(plan)]
    # The one trap: an idle key among many others is looked for along the primary key, each with some probes;
    # before the first there are the held ones.
    if limit == 5 and (state, crowd) != ("idle", "mostly_ready"):
        assert buffers(plan) < (15 * FEW if state == "idle" else 50)


@pytest.mark.each_value
@pytest.mark.parametrize("statistics", _STATISTICS)
@pytest.mark.parametrize(
    "arguments",
    [
        "max_keys => 5",
        "of_state => 'held', max_keys => 5",
        "of_state => 'retrying,paused', max_keys => 5",
        "of_state => 'ready', max_keys => 5",
        "of_state => 'ready', max_keys => 5, min_lag => 1",
        "of_state => 'ready', max_keys => 5, older_than => '0 s'",
    ],
)
def test_a_full_list_reads_no_further(mostly_ready: Database, statistics: str, arguments: str) -> None:
    query = f"SELECT * FROM inturn.list_keys({arguments})"
    with _believing(mostly_ready, statistics) as connection:
        assert cost(connection, query) < 300


@pytest.mark.each_value
@pytest.mark.parametrize("statistics", _STATISTICS)
@pytest.mark.parametrize("arguments", ["min_lag => 100", "min_lag => 100, sort_by => 'lag'"])
def test_a_great_lag_is_found_by_one_look_into_the_log_for_each_key(
    mostly_ready: Database, statistics: str, arguments: str
) -> None:
    with _believing(mostly_ready, statistics) as connection:
        query = f"SELECT * FROM inturn.list_keys({arguments})"
        assert [row[1] for row in connection.execute(query).fetchall()] == ["deep1"]
        # Some blocks for each of 100,000 keys, of the log's index; sorted, for the worst of them once more.
        assert buffers(explain(connection, query)) < 450_000


@pytest.mark.each_value
@pytest.mark.parametrize("statistics", _STATISTICS)
@pytest.mark.parametrize(("sort", "most"), [("lag", 600_000), ("age", 300_000)])
def test_what_is_sorted_is_probed_and_nothing_else(
    mostly_ready: Database, statistics: str, sort: str, most: int
) -> None:
    with _believing(mostly_ready, statistics) as connection:
        query = f"SELECT * FROM inturn.list_keys(sort_by => '{sort}')"
        plan = explain(connection, query)
    # Some blocks for each of 20,000 keys; sorted by lag, for each of 100,000 once more.
    assert buffers(plan) < most


def _warnings(connection: psycopg.Connection[Any], query: str) -> tuple[list[Any], list[str]]:
    said: list[str] = []
    connection.add_notice_handler(lambda diagnostic: said.append(diagnostic.message_primary or ""))
    return connection.execute(query).fetchall(), said


def test_what_is_sorted_among_the_first_only_says_so(mostly_ready: Database, mostly_idle: Database) -> None:
    connection = mostly_ready.connect(user=OWNER)
    for sort, says in (("age", True), ("lag", True), ("attempts", False)):
        query = f"SELECT * FROM inturn.list_keys(sort_by => '{sort}', max_keys => 5)"
        assert bool(_warnings(connection, query)[1]) == says, sort
        assert _warnings(mostly_idle.connect(user=OWNER), query)[1] == [], sort
    # Lags over 32 are sorted exactly, however many keys there are.
    rows, said = _warnings(connection, "SELECT key FROM inturn.list_keys(sort_by => 'lag', max_keys => 1)")
    assert (rows, said) == ([("deep1",)], [])


def test_idle_keys_are_looked_for_among_some_keys_and_only_where_no_others_fill_the_list(
    mostly_ready: Database,
) -> None:
    connection = mostly_ready.connect(user=OWNER)
    query = "SELECT key FROM inturn.list_keys({}, of_like => 'ready_____')"
    for sort, most in (("age", 200_000), ("attempts", 10_000)):
        plan = explain(connection, query.format(f"sort_by => '{sort}', of_state => 'ready,idle'"))
        assert buffers(plan) < most, sort
    with replaced(mostly_ready, "list_keys", ("50000", "2000")):
        idle = query.format("of_state => 'idle'")
        rows, said = _warnings(connection, idle)
        assert rows == []
        (warning,) = said
        assert warning.startswith("more than 2000 keys in topic 'shop' begin with 'ready': idle ones were")
        # Some blocks for each.
        assert buffers(explain(connection, idle)) < 30_000


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_million_keys_are_listed_within_a_second_or_some_where_each_is_looked_at(
    server: Server, template: str
) -> None:
    for crowd in ({"ready": 1_000_000}, {"idle": 1_000_000, "ready": 50_000}):
        database = crowd_of_keys(server, template, "list_million", **dict.fromkeys(STATES[:5], 1000) | crowd)
        try:
            database.execute("VACUUM")
            connection = database.connect(user=OWNER)
            slow = {}
            for arguments in (
                "",
                *(f"of_state => '{state}'" for state in STATES),
                *(f"sort_by => '{sort}'" for sort in ("lag", "age", "attempts")),
                "min_lag => 100",
                "of_like => 'nosuch%'",
            ):
                query = f"SELECT * FROM inturn.list_keys({arguments})"
                connection.execute(query)
                most = 10 if "lag" in arguments else 1
                # The quickest of some: the machine may stand still in any of them.
                seconds: list[float] = []
                while not seconds or (min(seconds) > most and len(seconds) < 5):
                    started_at = time.monotonic()
                    connection.execute(query)
                    seconds.append(time.monotonic() - started_at)
                if min(seconds) > most:
                    slow[arguments] = min(seconds)
            assert slow == {}
        finally:
            database.drop()


# What it finds.


@pytest.fixture
def orders(witness: Database) -> Database:
    """A key of topic orders in each state; topic bills beside it."""
    witness.execute(
        "UPDATE inturn.topic SET max_attempts = 2, backoff_base = '1 hour', backoff_cap = '1 hour'"
    )
    witness.execute("SELECT inturn.create_topic('bills')")
    for key, name in (("bad", "fail"), ("poor", "fail"), ("idle1", "insert")):
        witness.execute("SELECT inturn.append('orders', %s, %s)", [key, name])
    witness.execute("CALL inturn.apply()")
    witness.execute("UPDATE inturn.key_cursor SET ready_at = now() WHERE key = 'bad'")
    witness.execute("CALL inturn.apply()")
    for number in range(1, 4):
        witness.execute("SELECT inturn.append('orders', %s, 'insert')", [f"ready{number}"])
    witness.execute("SELECT inturn.append('orders', 'quiet', 'insert')")
    witness.execute("SELECT inturn.pause('orders', 'quiet', 'a test')")
    witness.execute("SELECT inturn.append('orders', 'ready3', 'insert') FROM generate_series(1, 40)")
    return witness


def _keys(database: Database, arguments: str = "") -> list[str]:
    return [key for (key,) in database.execute(f"SELECT key FROM inturn.list_keys({arguments})")]


def test_the_worst_come_first(orders: Database) -> None:
    assert orders.execute("SELECT key, state, pending FROM inturn.list_keys()") == [
        ("bad", "held", 1),
        ("poor", "retrying", 1),
        ("quiet", "paused", 1),
        ("ready1", "ready", 1),
        ("ready2", "ready", 1),
        ("ready3", "ready", 41),
        ("idle1", "idle", 0),
    ]
    assert _keys(orders, "max_keys => 2") == ["bad", "poor"]
    for none in ("'bills'", "max_keys => 0", "max_keys => 0, of_state => 'idle', sort_by => 'lag'"):
        assert _keys(orders, none) == []


def test_states_are_chosen_one_or_several(orders: Database) -> None:
    everything = orders.execute("SELECT key, state FROM inturn.list_keys()")
    for state in STATES:
        assert _keys(orders, f"of_state => '{state}'") == [k for k, s in everything if s == state]
    assert _keys(orders, "of_state => 'idle,held'") == ["bad", "idle1"]


def test_the_old_columns_stand_first_in_their_order(orders: Database) -> None:
    cursor = orders.connect(user=OPERATOR).execute("SELECT * FROM inturn.list_keys(NULL, 'held', 50)")
    assert cursor.description is not None
    assert [column.name for column in cursor.description] == [
        *("topic", "key", "state", "applied_seq", "last_seq", "pending", "oldest_pending_at", "attempts"),
        *("ready_at", "held_at", "last_error", "paused_at", "paused_until", "topic_paused"),
        *("waiting_at", "claimed_by", "lease_until"),
    ]


def test_filters_are_exact(orders: Database) -> None:
    assert _keys(orders, "min_lag => 2") == ["ready3"]
    assert _keys(orders, "min_lag => 41") == ["ready3"]
    assert _keys(orders, "min_lag => 42") == []
    assert len(_keys(orders, "min_lag => 1")) == 6
    assert _keys(orders, "min_lag => 1, of_state => 'idle'") == []
    assert _keys(orders, "of_like => 'read%2'") == ["ready2"]
    assert _keys(orders, "of_like => 'ready3', min_lag => 40, of_state => 'ready'") == ["ready3"]
    orders.execute(
        "UPDATE inturn.command_log SET created_at = now() - interval '1 hour' WHERE key IN ('ready2', 'poor')"
    )
    assert _keys(orders, "older_than => '10 min'") == ["poor", "ready2"]
    assert _keys(orders, "older_than => '2 h'") == []


@pytest.mark.each_value
@pytest.mark.parametrize("lag", [*range(29, 37), 61, 64, 65, 97])
@pytest.mark.parametrize("drained", [0, 1, 31, 32, 63])
def test_no_lag_is_missed_wherever_the_key_was_drained(witness: Database, lag: int, drained: int) -> None:
    append = "SELECT inturn.append('orders', 'k', 'insert') FROM generate_series(1, %s)"
    witness.execute(append, [drained])
    witness.execute("CALL inturn.apply()")
    witness.execute(append, [lag])
    assert _keys(witness, f"min_lag => {lag}") == ["k"]
    assert _keys(witness, f"min_lag => {lag}, sort_by => 'lag'") == ["k"]
    assert _keys(witness, f"min_lag => {lag + 1}") == []


def test_an_idle_key_that_only_a_hint_tells_of_is_ready(orders: Database) -> None:
    """Its caller appended on a snapshot, and no applier has looked at it yet."""
    caller = orders.session()
    caller.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    caller.execute("SELECT inturn.append('orders', 'idle1', 'insert') FROM generate_series(1, 50)")
    caller.commit()
    assert orders.execute("SELECT state, pending, oldest_pending_at > ready_at FROM inturn.list_keys()")[
        -1
    ] == ("ready", 50, False)
    orders.execute("UPDATE inturn.command_log SET created_at = now() - interval '1 h' WHERE key = 'idle1'")
    assert _keys(orders, "of_state => 'ready'") == ["ready1", "ready2", "ready3", "idle1"]
    assert _keys(orders, "of_state => 'idle'") == []
    for arguments in ("older_than => '10 min'", "min_lag => 50", "min_lag => 50, sort_by => 'lag'"):
        assert _keys(orders, arguments) == ["idle1"]
    for arguments in ("older_than => '2 h'", "min_lag => 51", "of_like => 'x', min_lag => 50", "'bills'"):
        assert _keys(orders, arguments) == []
    for sort in ("lag", "age"):
        assert _keys(orders, f"sort_by => '{sort}'")[0] == "idle1"
        assert sorted(_keys(orders, f"sort_by => '{sort}'")) == sorted(_keys(orders))
    status = "SELECT ready, pending, oldest_pending_at < now() - interval '1 min', exact"
    assert orders.execute(f"{status} FROM inturn.topic_status('orders')") == [(4, 96, True, True)]


def test_sorted_by_lag_age_or_attempts(orders: Database) -> None:
    orders.execute("UPDATE inturn.command_log SET created_at = now() - interval '1 h' WHERE key = 'ready2'")
    assert _keys(orders, "sort_by => 'lag'")[0] == "ready3"
    assert _keys(orders, "sort_by => 'age'")[0] == "ready2"
    assert _keys(orders, "sort_by => 'attempts'")[:2] == ["bad", "poor"]
    for sort in ("lag", "age", "attempts"):
        assert _keys(orders, f"sort_by => '{sort}'")[-1] == "idle1"
        assert sorted(_keys(orders, f"sort_by => '{sort}'")) == sorted(_keys(orders))
        assert len(_keys(orders, f"sort_by => '{sort}', max_keys => 3")) == 3


def test_a_paused_topic_and_a_pause_that_is_over(orders: Database) -> None:
    assert {paused for (paused,) in orders.execute("SELECT topic_paused FROM inturn.list_keys()")} == {False}
    orders.execute("SELECT inturn.pause_topic('orders', 'a test')")
    assert {paused for (paused,) in orders.execute("SELECT topic_paused FROM inturn.list_keys()")} == {True}
    orders.execute("SELECT inturn.resume('orders', 'quiet')")
    orders.execute("SELECT inturn.pause('orders', 'quiet', 'a test', clock_timestamp() + interval '50 ms')")
    orders.execute("SELECT pg_sleep_until(clock_timestamp() + interval '60 ms')")
    assert "quiet" in _keys(orders, "of_state => 'ready'")
    assert _keys(orders, "of_state => 'paused'") == []


@pytest.mark.parametrize(
    "arguments",
    ["of_state => 'stuck'", "of_state => 'held,stuck'", "of_state => ''", "sort_by => 'key'"],
)
def test_an_unknown_state_or_order_is_refused_naming_what_there_is(
    database: Database, arguments: str
) -> None:
    refused = refusal(database, f"SELECT * FROM inturn.list_keys({arguments})")
    assert refused.sqlstate == "IT044"
    assert (
        "lag, age or attempts" if "sort" in arguments else "held, waiting, retrying, paused"
    ) in refused.hint


# Leases, and numbers that callers give.


@pytest.fixture
def given(orders: Database) -> Database:
    """Beside the orders: a leased key; and topic `given`, with keys that wait for a number."""
    orders.execute("SELECT inturn.append('orders', 'busy', 'insert')")
    come_first(orders, "busy")
    (row,) = orders.execute(
        "SELECT key FROM inturn.claim(topics => '{orders}', max_keys => 1, lease => '1 h', applier => 'me')"
    )
    assert row == ("busy",)
    orders.execute(
        "SELECT inturn.create_topic('given', 'sql:app.apply_order', numbering => 'given', first_seq => 0)"
    )
    for key, seqs in (("gap", "{0,5,3}"), ("far", "{100}"), ("next", "{0,1,3}")):
        orders.execute(
            "SELECT inturn.append('given', %s, 'insert', seq => n) FROM unnest(%s::bigint[]) n", [key, seqs]
        )
    come_first(orders, "gap")
    with orders.connect(user=APPLIER, autocommit=False) as applier:
        applier.execute("SELECT * FROM inturn.claim('given', max_keys => 1)")
        applier.execute("SELECT inturn.finish('given', '{gap}', '{1}', '{0}', '{0}', 'me')")
        applier.commit()
    return orders


def test_leased_and_waiting_keys_have_their_places(given: Database) -> None:
    rows = given.execute(
        "SELECT key, state, pending, last_seq, waiting_at IS NULL, claimed_by, lease_until IS NULL"
        " FROM inturn.list_keys()"
    )
    assert [(key, state) for key, state, *_ in rows] == [
        ("bad", "held"),
        ("far", "waiting"),
        ("gap", "waiting"),
        ("poor", "retrying"),
        ("quiet", "paused"),
        ("busy", "leased"),
        *((f"ready{n}", "ready") for n in (1, 2, 3)),
        ("next", "ready"),
        ("idle1", "idle"),
    ]
    found = {key: rest for key, _, *rest in rows}
    assert found["gap"] == [2, 5, False, None, True]
    assert found["far"] == [1, 100, False, None, True]
    assert found["busy"] == [1, 1, True, "me", False]
    assert found["next"] == [3, 3, True, None, True]


def test_what_is_pending_beyond_a_gap_is_counted_and_its_age_is_that_of_the_first_that_came(
    given: Database,
) -> None:
    given.execute(
        "UPDATE inturn.command_log SET created_at = now() - interval '1 hour' WHERE key = 'gap' AND seq = 5"
    )
    assert _keys(given, "'given', min_lag => 2") == ["gap", "next"]
    assert _keys(given, "'given', min_lag => 3") == ["next"]
    assert _keys(given, "'given', sort_by => 'lag'") == ["next", "gap", "far"]
    assert _keys(given, "'given', older_than => '10 min'") == ["gap"]
    assert _keys(given, "'given', sort_by => 'age'")[0] == "gap"
    oldest = given.value("SELECT oldest_pending_at FROM inturn.list_keys('given', of_like => 'gap')")
    assert oldest == given.value("SELECT created_at FROM inturn.command_log WHERE key = 'gap' AND seq = 5")


def test_a_great_lag_is_found_where_callers_number_too(given: Database) -> None:
    given.execute(
        "SELECT inturn.append('given', 'deep', 'insert', seq => 2 * n) FROM generate_series(1, 40) n"
    )
    assert _keys(given, "min_lag => 40") == ["deep", "ready3"]
    assert _keys(given, "min_lag => 41") == ["ready3"]
    assert _keys(given, "min_lag => 40, of_state => 'waiting'") == ["deep"]
    assert _keys(given, "min_lag => 40, of_state => 'idle,ready', sort_by => 'lag'") == ["ready3"]
    assert _keys(given, "sort_by => 'lag', max_keys => 2") == ["ready3", "deep"]


def test_a_lease_that_ran_out_is_no_lease(given: Database) -> None:
    given.execute("UPDATE inturn.key_cursor SET lease_until = now(), ready_at = now() WHERE key = 'busy'")
    assert _keys(given, "of_state => 'leased'") == []
    assert "busy" in _keys(given, "of_state => 'ready'")
    status = given.execute("SELECT topic, waiting, leased FROM inturn.topic_status()")
    assert status == [("bills", 0, 0), ("given", 2, 0), ("orders", 0, 0)]
