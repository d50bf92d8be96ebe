"""topic_metrics and server_metrics: what a scrape asks the database."""

from __future__ import annotations

import pytest
from support.arrivals import number
from support.database import Database
from support.logins import connect_as
from support.plans import buffers, explain
from support.race import replace_in
from support.roles import APPLIER, OWNER

from inturn.applier.inside.passes import Passes

pytestmark = pytest.mark.server

TOPIC_METRICS, SERVER_METRICS = (
    "SELECT * FROM inturn.topic_metrics()",
    "SELECT * FROM inturn.server_metrics()",
)
STATES = ("held", "retrying", "paused", "leased", "waiting", "ready")


def metrics(database: Database, function: str = TOPIC_METRICS) -> dict[tuple[str, ...], float]:
    """Return the value of each metric, by its name and the values of its labels."""
    rows = database.execute(function)
    found = {(name, *(labels[label] for label in sorted(labels))): value for name, labels, value in rows}
    assert len(found) == len(rows), "a sample twice"
    return found


def keys(database: Database, topic: str = "orders") -> dict[str, int]:
    return {state: int(metrics(database)["inturn_keys", state, topic]) for state in STATES}


@pytest.fixture
def orders(witness: Database) -> Database:
    """Topic orders with two commands applied, a held, a paused and three ready keys; topic bills without."""
    witness.execute("UPDATE inturn.topic SET max_attempts = 1")
    for key, name in (("a", "insert"), ("b", "insert"), ("c", "fail"), ("c", "insert")):
        witness.execute("SELECT inturn.append('orders', %s, %s)", [key, name])
    witness.execute("CALL inturn.apply()")
    for key in ("d", "e", "e", "e", "f", "g"):
        witness.execute("SELECT inturn.append('orders', %s, 'insert')", [key])
    witness.execute("SELECT inturn.pause('orders', 'f', 'a test')")
    witness.execute("SELECT inturn.create_topic('bills')")
    return witness


def test_the_topics_are_counted_as_topic_status_counts_them(orders: Database) -> None:
    found = metrics(orders)
    for row in orders.execute("SELECT s.topic, to_jsonb(s) FROM inturn.topic_status() s"):
        topic, status = row
        assert {state: found["inturn_keys", state, topic] for state in STATES} == {
            state: status[state] for state in STATES
        }
        assert found["inturn_pending_commands", topic] == status["pending"]
        assert found["inturn_counts_exact", topic] == 1
    assert keys(orders) == dict.fromkeys(STATES, 0) | {"held": 1, "paused": 1, "ready": 3}
    assert found["inturn_pending_commands", "orders"] == 8


def test_ages_are_those_of_the_oldest_command_and_of_the_key_that_is_ready_longest(orders: Database) -> None:
    def ages() -> tuple[float, float]:
        found = metrics(orders)
        names = ("inturn_oldest_pending_age_seconds", "inturn_oldest_ready_age_seconds")
        return found[names[0], "orders"], found[names[1], "orders"]

    orders.execute(
        "UPDATE inturn.command_log SET created_at = now() - interval '2 h' WHERE key = 'c' AND seq = 1"
    )
    orders.execute("UPDATE inturn.ticket SET ready_at = now() - interval '1 h' WHERE key = 'd'")
    orders.execute("DELETE FROM inturn.saved_pass")  # nothing but a test makes a key due in the past
    pending, ready = ages()
    assert 7200 <= pending < 7200 + 600
    assert 3600 <= ready < 3600 + 600
    # Of the held key it is the command that stands, not what was applied before.
    orders.execute("SELECT inturn.cancel_rest('orders', 'c', 'not wanted')")
    orders.execute("CALL inturn.apply()")
    pending, ready = ages()
    assert 0 < pending < 600
    assert ready == 0
    assert metrics(orders)["inturn_oldest_pending_age_seconds", "bills"] == 0


def test_keys_that_only_hints_tell_of_are_ready(orders: Database) -> None:
    """With no applier alive nobody wakes them: whoever watches the topic has to see them."""
    for key in ("a", "b", "a"):
        caller = orders.session()
        caller.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        caller.execute("SELECT inturn.append('orders', %s, 'insert')", [key])
        caller.commit()
    orders.execute("UPDATE inturn.wake_hint SET left_at = left_at - interval '1 h'")
    orders.execute("DELETE FROM inturn.saved_pass")  # nothing but a test leaves a hint in the past
    orders.execute(
        "UPDATE inturn.command_log SET created_at = created_at - interval '1 h' WHERE key = 'a' AND seq = 2"
    )
    found = metrics(orders)
    assert found["inturn_keys", "ready", "orders"] == 3 + 2
    assert found["inturn_pending_commands", "orders"] == 8 + 3
    assert found["inturn_counts_exact", "orders"] == 1
    assert found["inturn_oldest_ready_age_seconds", "orders"] >= 3600
    assert found["inturn_oldest_pending_age_seconds", "orders"] >= 3600
    assert orders.execute("""
        SELECT ready, pending, oldest_pending_at < now() - interval '1 h' FROM inturn.topic_status('orders')
    """) == [(5, 11, True)]
    orders.execute("CALL inturn.apply()")
    assert orders.execute("SELECT ready, pending FROM inturn.topic_status('orders')") == [(0, 3)]
    assert metrics(orders)["inturn_oldest_ready_age_seconds", "orders"] == 0


def test_a_held_key_among_many_ready_ones_is_the_oldest_all_the_same(orders: Database) -> None:
    orders.execute("UPDATE inturn.command_log SET created_at = now() - interval '2 h' WHERE key = 'c'")
    _plant_ready(orders, 20000)
    found = metrics(orders)
    assert found["inturn_oldest_pending_age_seconds", "orders"] >= 7200
    assert found["inturn_counts_exact", "orders"] == 0


def test_what_has_arrived_and_has_no_number_is_pending(database: Database) -> None:
    database.execute("SELECT inturn.create_topic('hot', numbering => 'arrival')")
    database.execute("SELECT inturn.append('hot', 'a', 'insert') FROM generate_series(1, 3)")
    found = metrics(database)
    assert found["inturn_arrived_commands", "hot"] == found["inturn_pending_commands", "hot"] == 3
    assert found["inturn_oldest_pending_age_seconds", "hot"] > 0
    assert found["inturn_oldest_arrived_age_seconds", "hot"] > 0
    assert found["inturn_oldest_ready_age_seconds", "hot"] == 0


def test_a_scrape_does_not_walk_over_what_a_held_snapshot_keeps_of_numbered_commands(
    witness: Database,
) -> None:
    witness.execute("SELECT inturn.create_topic('posts', numbering => 'arrival')")
    holder = witness.session()
    holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    holder.execute("SELECT FROM inturn.topic")
    look = "SELECT * FROM inturn._count_topic('posts', 1000, '-infinity', '-infinity')"
    costs = []
    with witness.connect(user=OWNER) as connection:
        for _ in range(6):
            witness.execute("SELECT inturn.append('posts', 'a', 'insert') FROM generate_series(1, 1000)")
            assert metrics(witness)["inturn_arrived_commands", "posts"] == 1000
            assert number(witness) == 1000
            explain(connection, look)
            costs.append(buffers(explain(connection, look)))
    assert costs[-1] <= costs[1] + 20, costs
    assert metrics(witness)["inturn_arrived_commands", "posts"] == 0


def _pass(database: Database, times: int = 3) -> None:
    """As an applier that keeps in memory where its passes begin, and whose commands do not count."""
    connection = database.connect(user=APPLIER)
    passes = Passes("inturn")
    passes.serve(connection, ["orders"])
    for _ in range(times):
        passes.begin(connection)


def _walk(database: Database, query: str) -> tuple[list[tuple[object, ...]], int]:
    """Return what it gives, and how many entries it has read where turns leave some, dead ones too."""
    with database.connect(user=OWNER, autocommit=False) as connection:
        rows = connection.execute(query).fetchall()
        ((read,),) = connection.execute("""
            SELECT sum(pg_stat_get_xact_tuples_returned(i.indexrelid))::integer FROM pg_index i
            WHERE i.indrelid = ANY ('{inturn.ticket,inturn.key_mark,inturn.wake_hint}'::regclass[])
        """)
    return rows, read


def test_no_look_walks_over_what_a_held_snapshot_keeps_of_turns(orders: Database) -> None:
    """Ten minutes of 5,000 turns a second are three million entries in each of these indexes."""
    replace_in(orders, "_begin_saved_pass", (r"interval '100 ms'", "interval '0'"))
    orders.execute("CALL inturn.apply()")
    orders.execute("DELETE FROM inturn.saved_pass")
    report = orders.session()
    report.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    report.execute("SELECT FROM inturn.topic")
    orders.execute("""
        INSERT INTO inturn.ticket SELECT 'orders', 'k' || n, 0, 0, clock_timestamp() + s * interval '1 min'
        FROM generate_series(1, 2000) n, mod(n, 2) s;
        INSERT INTO inturn.key_mark (topic, key, epoch, attempts, claimed_by, lease_until, ready_at)
        SELECT 'orders', 'k' || n, 0, 1, 'a', now(), now() FROM generate_series(1, 1000) n;
        INSERT INTO inturn.wake_hint
        SELECT 'orders', 'k' || n, clock_timestamp() FROM generate_series(1, 1000) n;
        DELETE FROM inturn.ticket WHERE key LIKE 'k%'; DELETE FROM inturn.key_mark WHERE key LIKE 'k%';
        DELETE FROM inturn.wake_hint;
    """)
    for key in ("d", "e", "g"):
        orders.execute("SELECT inturn.append('orders', %s, 'insert')", [key])
    applier = orders.session()
    applier.execute("SELECT inturn.announce_applier('me', '{orders}', 'h', 1, '0001')")
    applier.commit()
    _pass(orders)
    ((first,),) = applier.execute("SELECT key FROM inturn.claim('orders', max_keys => 1)")
    found, read = _walk(orders, "SELECT ready, held, paused, exact FROM inturn.topic_status('orders')")
    assert (found, read > 1000) == ([(3, 1, 1, True)], True), "it may: it counts them all"
    looks = {
        "SELECT value FROM inturn.topic_metrics() WHERE metric = 'inturn_keys' AND labels->>'state' = 'ready'"
        " AND labels->>'topic' = 'orders'": (3.0,),
        "SELECT doing, topic, key FROM inturn.list_appliers() LIMIT 1": (
            "applying",
            "orders",
            first,
        ),
        "SELECT details->'ahead' FROM inturn.why('orders', 'g')": (2,),
    }
    for query, expected in looks.items():
        found, read = _walk(orders, query)
        assert (found, read < 100) == ([expected], True), (query, found, read)


def test_a_status_looks_at_no_more_than_so_many_keys_of_a_topic(orders: Database) -> None:
    """Of a million it says about how many are ready: to count them took seconds."""
    replace_in(orders, "topic_status", ("100000", "50"), ("20000", "20"))
    orders.execute("""
        INSERT INTO inturn.ticket SELECT 'orders', 'k' || n, 0, 0, clock_timestamp()
        FROM generate_series(1, 3000) n;
        ANALYZE inturn.ticket;
    """)
    ((ready, exact),), read = _walk(orders, "SELECT ready, exact FROM inturn.topic_status('orders')")
    assert isinstance(ready, int)
    assert (2800 < ready < 3200, exact, read < 300) == (True, False, True), (ready, read)


def test_a_key_that_was_committed_late_is_counted_though_passes_went_on(orders: Database) -> None:
    replace_in(orders, "_begin_saved_pass", (r"interval '100 ms'", "interval '0'"))
    caller = orders.session()
    caller.execute("SELECT inturn.append('orders', 'late', 'insert')")
    orders.execute("CALL inturn.apply()")
    _pass(orders)
    assert keys(orders)["ready"] == 0
    caller.commit()
    assert keys(orders)["ready"] == 1


def _plant_ready(database: Database, count: int) -> None:
    database.execute(
        """
        INSERT INTO inturn.ticket (topic, key, epoch, applied_seq, ready_at)
        SELECT 'orders', 'many' || n, 0, 0, now() - interval '1 min' FROM generate_series(1, %s) n
        """,
        [count],
    )
    database.execute("ANALYZE inturn.ticket; DELETE FROM inturn.saved_pass")


def test_of_very_many_keys_the_statistics_say_how_many(orders: Database) -> None:
    _plant_ready(orders, 20000)
    found = metrics(orders)
    assert found["inturn_keys", "ready", "orders"] == pytest.approx(20003, rel=0.1)
    assert found["inturn_keys", "held", "orders"] == 1
    assert found["inturn_pending_commands", "orders"] == pytest.approx(20008, rel=0.1)
    assert (found["inturn_counts_exact", "orders"], found["inturn_counts_exact", "bills"]) == (0, 1)


def test_so_are_keys_that_are_held_very_many(orders: Database) -> None:
    orders.execute("""
        INSERT INTO inturn.ticket (topic, key, epoch, applied_seq, ready_at, marked)
        SELECT 'orders', 'many' || n, 0, 0, 'infinity', true FROM generate_series(1, 20000) n;
        INSERT INTO inturn.key_mark (topic, key, epoch, held_at)
        SELECT 'orders', 'many' || n, 0, now() FROM generate_series(1, 20000) n;
        ANALYZE inturn.ticket; ANALYZE inturn.key_mark; DELETE FROM inturn.saved_pass;
    """)
    assert keys(orders)["held"] == pytest.approx(20001, rel=0.1)


def test_a_scrape_reads_no_more_of_many_keys_than_of_some(orders: Database) -> None:
    _plant_ready(orders, 5000)

    def cost() -> int:
        connection = orders.connect(user=OWNER)
        return sum(buffers(explain(connection, query)) for query in (TOPIC_METRICS, SERVER_METRICS))

    cost()
    some = cost()
    orders.execute("UPDATE inturn.ticket SET key = 'some' || key WHERE key LIKE 'many%'")
    _plant_ready(orders, 100_000)
    orders.execute("VACUUM ANALYZE inturn.ticket")
    cost()
    assert cost() <= 2 * some


def test_many_topics_share_out_what_is_looked_at(database: Database) -> None:
    database.execute("SELECT inturn.create_topic('t' || n) FROM generate_series(1, 300) n")
    database.execute("""
        INSERT INTO inturn.ticket (topic, key, epoch, applied_seq, ready_at)
        SELECT 't' || t, 'k' || n, 0, 0, now() FROM generate_series(1, 300) t, generate_series(1, 60) n
    """)
    database.execute("VACUUM ANALYZE inturn.ticket")
    found = metrics(database)
    assert sum(found["inturn_counts_exact", f"t{n}"] for n in range(1, 301)) == 0
    assert found["inturn_keys", "ready", "t7"] == pytest.approx(60, abs=40)
    assert buffers(explain(database.connect(user=OWNER), TOPIC_METRICS)) < 300 * 150


def test_who_serves_a_topic_and_what_is_down_is_said_of_living_appliers_only(orders: Database) -> None:
    for applier, topics, pid, down, abandoned in (
        ("h:1:1", ["orders"], 1, '{"orders": {"seconds": 1}}', 3),
        ("h:1:2", ["orders"], 1, '{"orders": {"seconds": 1}}', 3),
        ("h:2:1", ["orders", "bills"], 2, "{}", 1),
        ("h:3:1", ["orders", "bills"], 3, '{"bills": {"seconds": 1}}', 9),
    ):
        orders.execute(
            "SELECT inturn.announce_applier(%s, %s, 'h', %s, '0001', true, %s::jsonb, %s)",
            [applier, topics, pid, down, abandoned],
        )
    orders.execute("UPDATE inturn.applier SET seen_at = now() - interval '1 min' WHERE applier = 'h:3:1'")
    found = metrics(orders)
    assert (found["inturn_appliers", "orders"], found["inturn_appliers", "bills"]) == (3, 1)
    # A process counts once, however many workers it has.
    assert (found["inturn_breakers_open", "orders"], found["inturn_breakers_open", "bills"]) == (1, 0)
    assert metrics(orders, SERVER_METRICS)["inturn_abandoned_handlers",] == 4


def test_a_paused_topic_is_said_to_be_until_its_time_is_over(orders: Database) -> None:
    orders.execute("SELECT inturn.pause_topic('orders', 'a test', now() + interval '1 h')")
    assert metrics(orders)["inturn_topic_paused", "orders"] == 1
    orders.execute("UPDATE inturn.topic SET paused_until = now() - interval '1 s' WHERE name = 'orders'")
    assert metrics(orders)["inturn_topic_paused", "orders"] == 0


def test_the_sizes_of_every_table_are_there(orders: Database) -> None:
    found = metrics(orders, SERVER_METRICS)
    tables = {
        name
        for (name,) in orders.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'inturn'::regnamespace AND relkind = 'r'"
        )
    }
    for name in ("size_bytes", "live_rows", "dead_rows"):
        assert {labels[0] for metric, *labels in found if metric == f"inturn_table_{name}"} == tables
    size = orders.value("SELECT pg_total_relation_size('inturn.command_log')")
    assert found["inturn_table_size_bytes", "command_log"] == size
    assert found["inturn_schema_info", "0001"] == 1


def test_an_applier_may_ask_and_sees_the_sessions_of_others_and_a_caller_may_not(orders: Database) -> None:
    holder = orders.session()
    holder.execute("SELECT pg_current_xact_id()")
    applier, caller = connect_as(orders, "inturn_applier"), connect_as(orders, "inturn_caller")
    rows = applier.execute(
        "SELECT value FROM inturn.server_metrics()"
        " WHERE metric = 'inturn_oldest_snapshot_age_seconds' AND labels->>'holder' = 'session'"
    ).fetchall()
    assert rows[0][0] > 0
    assert applier.execute(TOPIC_METRICS).fetchall()
    with pytest.raises(Exception, match="permission denied for function topic_metrics"):
        caller.execute(TOPIC_METRICS)
