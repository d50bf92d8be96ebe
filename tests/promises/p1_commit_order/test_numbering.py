"""Numbering `given`: callers number a key's commands; they arrive in any order and are applied in theirs."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from support.database import Database, until
from support.race import blocked, unblocked
from support.refusal import refusal
from support.roles import CALLER, OWNER

MISMATCH, BELOW, TAKEN, PASSED, AHEAD = "IT007", "IT050", "IT051", "IT052", "IT053"
REFUSED, NO_REASON = "IT041", "IT043"


@pytest.fixture
def given(witness: Database) -> Database:
    """The witness database with topic `given`, whose callers number."""
    witness.execute(
        "SELECT inturn.create_topic("
        "'given', 'sql:app.apply_order', backoff_base => '10 ms', numbering => 'given')"
    )
    return witness


def put(session: Any, key: str, *seqs: int, name: str = "insert") -> None:
    for seq in seqs:
        assert session.execute("SELECT inturn.append('given', %s, %s, seq => %s)", [key, name, seq]) == [
            (seq,)
        ]


def apply(database: Database) -> None:
    database.execute("CALL inturn.apply()")


def applied(database: Database) -> bool:
    """Apply what is ready, as often as a condition is asked for."""
    apply(database)
    return True


def effects(database: Database, key: str = "x") -> list[int]:
    return [
        seq for (seq,) in database.execute("SELECT seq FROM app.witness WHERE key = %s ORDER BY id", [key])
    ]


def state(database: Database, key: str = "x") -> tuple[str, int]:
    (row,) = database.execute(
        "SELECT inturn.key_state(c), applied_seq FROM inturn.key_cursor c WHERE topic = 'given' AND key = %s",
        [key],
    )
    return row[0], row[1]


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (2, 1, 3), (3, 1, 2)])
def test_whatever_the_order_of_arrival_they_are_applied_in_number(
    given: Database, order: tuple[int, ...]
) -> None:
    for seq in order:
        put(given, "x", seq)
        apply(given)
    assert effects(given) == [1, 2, 3]
    assert state(given) == ("idle", 3)


def test_a_gap_makes_the_key_wait_and_the_missing_number_wakes_it(given: Database) -> None:
    put(given, "x", 1, 3, 4, 6)
    apply(given)
    assert effects(given) == [1]
    assert state(given) == ("waiting", 1)
    assert given.execute("SELECT ready_at FROM inturn.key_cursor") == [(None,)]
    put(given, "x", 5)
    apply(given)
    assert effects(given) == [1]
    put(given, "x", 2)
    assert state(given) == ("ready", 1)
    apply(given)
    assert effects(given) == [1, 2, 3, 4, 5, 6]
    assert state(given) == ("idle", 6)


@pytest.mark.parametrize("hands", ["nobody's", "an applier's"])
def test_a_number_that_comes_after_the_gap_timeout_makes_the_key_ready_for_every_witness(
    given: Database, hands: str
) -> None:
    """What key_state, keys and verify say of the key is one and the same."""
    given.execute("SELECT inturn.set_topic('given', gap_timeout => '50 ms')")
    put(given, "x", 2)
    ready = "SELECT ready_at < clock_timestamp() FROM inturn.key_cursor"
    until(lambda: given.value(ready), "the gap_timeout is over")
    applier = given.session()
    if hands == "an applier's":
        # It has looked for the number before that came, and cannot know it.
        assert applier.execute("SELECT key, applied_seq FROM inturn.claim('given')") == [("x", 0)]
    put(given, "x", 1)
    assert given.execute("SELECT violation FROM inturn.verify('given')") == []
    if hands == "an applier's":
        applier.execute("SELECT inturn.finish('given', '{x}', '{1}', '{1}', '{0}', 'a')")
        applier.commit()
        assert given.execute("SELECT violation FROM inturn.verify('given')") == []
        given.execute("SELECT inturn._take_hints('{given}')")
    assert state(given) == ("ready", 0)
    assert given.execute("SELECT state FROM inturn.list_keys('given')") == [("ready",)]
    assert given.execute("SELECT violation FROM inturn.verify('given')") == []
    apply(given)
    assert effects(given) == [1, 2]


def test_a_first_command_that_is_not_the_first_number_waits(given: Database) -> None:
    put(given, "x", 2)
    assert state(given) == ("waiting", 0)
    put(given, "x", 1)
    apply(given)
    assert effects(given) == [1, 2]


@pytest.mark.parametrize("target", ["sql", "claim_commands", "lease"])
def test_no_claim_of_any_kind_reaches_beyond_a_gap(given: Database, target: str) -> None:
    put(given, "x", 1, 2, 4)
    if target == "sql":
        apply(given)
        assert effects(given) == [1, 2]
        return
    query = {
        "claim_commands": "SELECT seq FROM inturn.claim_commands('given')",
        "lease": "SELECT seq FROM inturn.claim('{given}'::text[], 1, NULL, NULL)",
    }[target]
    assert given.execute(query) == [(1,), (2,)]


def test_the_same_number_with_the_same_content_is_ignored(given: Database) -> None:
    append = "SELECT inturn.append('given', 'x', 'insert', '{\"amount\": 1.50}', seq => 1)"
    assert [given.value(append) for _ in range(3)] == [1, 1, 1]
    apply(given)
    assert given.value(append) == 1, "applied already"
    apply(given)
    assert effects(given) == [1]


@pytest.mark.parametrize("other", ["'delete', '{}'", "'insert', '{\"amount\": 2}'"])
def test_the_same_number_with_other_content_is_refused(given: Database, other: str) -> None:
    put(given, "x", 1)
    found = refusal(given, f"SELECT inturn.append('given', 'x', {other}, seq => 1)")
    assert found.sqlstate == TAKEN
    # And nothing of what is there: another caller may have appended it.
    assert found.message == "seq 1 of key 'x' of topic 'given' is there with other content"
    assert given.value("SELECT count(*) FROM inturn.command_log") == 1


def test_what_an_operator_amended_counts_as_its_caller_gave_it(given: Database) -> None:
    put(given, "x", 1)
    given.execute("SELECT inturn.amend('given', 'x', 1, 'no', name => 'update')")
    given.execute("SELECT inturn.amend('given', 'x', 1, 'no', name => 'upsert')")
    put(given, "x", 1)
    amended = refusal(given, "SELECT inturn.append('given', 'x', 'update', seq => 1)")
    assert amended.sqlstate == TAKEN


def test_numbers_that_cannot_be_are_refused_by_name_and_leave_nothing(given: Database) -> None:
    given.execute(
        "SELECT inturn.create_topic('from7', numbering => 'given', first_seq => 7, max_ahead => 10)"
    )
    refused = {
        "SELECT inturn.append('given', 'x', 'insert')": (MISMATCH, "no seq was given for key 'x'"),
        "SELECT inturn.append('orders', 'x', 'insert', seq => 1)": (
            MISMATCH,
            "topic 'orders' numbers its commands itself",
        ),
        "SELECT inturn.append('given', 'x', 'insert', seq => 0)": (
            BELOW,
            "seq 0 of key 'x' is below the first",
        ),
        "SELECT inturn.append('from7', 'x', 'insert', seq => 6)": (BELOW, "the first of topic 'from7', 7"),
        "SELECT inturn.append('from7', 'x', 'insert', seq => 17)": (
            AHEAD,
            "is over 10 ahead of the last applied one, 6",
        ),
        "SELECT inturn.append('given', 'x', 'insert', '{}', 'once', 1)": ("IT005", "beside seq 1"),
        "SELECT inturn.append('nothing', 'x', 'insert', seq => 1)": ("IT001", "'nothing'"),
        "SELECT inturn.append('given', '', 'insert', seq => 1)": ("IT002", "key is empty"),
        "SELECT inturn.append('given', 'x', '', seq => 1)": ("IT004", "is empty"),
    }
    for query, (sqlstate, says) in refused.items():
        found = refusal(given, query)
        assert (found.sqlstate, says in found.message) == (sqlstate, True), (query, found)
        assert found.hint
    for table in ("command_log", "key_sequence", "key_cursor"):
        assert given.value(f"SELECT count(*) FROM inturn.{table}") == 0
    assert given.value("SELECT inturn.append('from7', 'x', 'insert', seq => 16)") == 16


def test_a_number_is_missed_only_in_its_own_topic_kind(given: Database) -> None:
    put(given, "x", 1)
    found = refusal(given, "SELECT inturn.append('given', 'x', 'insert')")
    assert found.sqlstate == MISMATCH
    assert (
        refusal(given, "INSERT INTO inturn.outbox (topic, key, name) VALUES ('given', 'x', 'a')").sqlstate
        == MISMATCH
    )


def test_the_outbox_view_takes_given_numbers(given: Database) -> None:
    given.execute("INSERT INTO inturn.outbox (topic, key, name, seq) VALUES ('given', 'x', 'insert', 1)")
    apply(given)
    assert effects(given) == [1]


# Two callers at once.


def test_two_callers_of_the_same_number_append_it_once(given: Database) -> None:
    one, two = given.session(), given.session()
    put(one, "x", 1)
    again = two.begin("SELECT inturn.append('given', 'x', 'insert', seq => 1)")
    assert two.wait_blocked() == [one.pid]
    one.commit()
    assert again.result() == [(1,)]
    two.commit()
    assert given.value("SELECT count(*) FROM inturn.command_log") == 1


def test_the_second_of_two_first_callers_goes_on_when_the_first_rolls_back(given: Database) -> None:
    one, two = given.session(), given.session()
    put(one, "x", 1)
    second = two.begin("SELECT inturn.append('given', 'x', 'insert', seq => 2)")
    assert two.wait_blocked() == [one.pid]
    one.rollback()
    assert second.result() == [(2,)]
    two.commit()
    assert state(given) == ("waiting", 0)
    put(given, "x", 1)
    apply(given)
    assert effects(given) == [1, 2]


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_an_older_snapshot_is_served_or_told_to_run_again(given: Database, isolation: str) -> None:
    put(given, "x", 1)
    caller = given.session()
    caller.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
    caller.execute("SELECT 1")
    put(given, "x", 2)
    append = "SELECT inturn.append('given', 'x', 'insert', seq => %s)"
    with pytest.raises(psycopg.errors.SerializationFailure):
        caller.execute(append, [2])
    caller.rollback()
    assert caller.execute(append, [3]) == [(3,)]
    caller.commit()
    apply(given)
    assert effects(given) == [1, 2, 3]


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_number_that_was_passed_over_is_refused_beside_whoever_has_the_table(
    given: Database, isolation: str
) -> None:
    """REINDEX and CREATE INDEX keep writers out: who waits for them does not wait for a turn."""
    put(given, "x", 1, 3)
    apply(given)
    caller, rebuilds = given.session(), given.session(user=OWNER)
    caller.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
    caller.execute("SELECT 1")
    given.execute("SELECT inturn.fill_gap('given', 'x', 2, 'lost')")
    rebuilds.execute("LOCK TABLE inturn.skip IN SHARE MODE")
    late = caller.begin("SELECT inturn.append('given', 'x', 'insert', seq => 2)")
    assert caller.wait_blocked() == [rebuilds.pid]
    rebuilds.commit()
    assert getattr(late.exception(), "sqlstate", None) == "40001"


def test_finish_beside_the_open_append_of_the_missing_number_leaves_the_key_awake(given: Database) -> None:
    put(given, "x", 1, 3)
    caller, applier = given.session(), given.session()
    put(caller, "x", 2)
    (row,) = applier.execute("SELECT key, applied_seq, epoch FROM inturn.claim('given')")
    unblocked(
        given, applier, "SELECT inturn.finish('given', %s, %s, %s, %s, 'me')", [[row[0]], [row[2]], [1], [1]]
    )
    applier.commit()
    assert state(given) == ("ready", 1), "waits although the missing one may be about to commit"
    caller.commit()
    apply(given)
    assert state(given) == ("idle", 3)


def test_the_append_of_the_missing_number_beside_a_finish_waits_for_it_and_wakes_the_key(
    given: Database,
) -> None:
    put(given, "x", 1, 3)
    caller, applier = given.session(), given.session()
    (row,) = applier.execute("SELECT key, applied_seq, epoch FROM inturn.claim('given')")
    applier.execute("SELECT inturn.finish('given', %s, %s, %s, %s, 'me')", [[row[0]], [row[2]], [1], [1]])
    waiting = caller.begin("SELECT inturn.append('given', 'x', 'insert', seq => 2)")
    assert caller.wait_blocked() == [applier.pid]
    applier.commit()
    waiting.result()
    caller.commit()
    assert state(given) == ("ready", 1)


def test_many_machines_in_any_order_with_repeats_under_appliers(given: Database) -> None:
    """Four callers append every number of ten keys, shuffled, some twice, while two appliers apply."""
    numbers = [(key, seq) for key in "abcdefghij" for seq in range(1, 31)]
    shares = [random.Random(seed).sample(numbers, len(numbers) * 2 // 3) for seed in range(3)] + [
        numbers[::-1]
    ]

    def call(share: list[tuple[str, int]]) -> None:
        connection = given.connect(user=CALLER)
        for key, seq in share:
            connection.execute("SELECT inturn.append('given', %s, 'insert', seq => %s)", [key, seq])

    def work() -> None:
        connection = given.connect(user=OWNER)
        while (
            not calls_done()
            or connection.execute("SELECT FROM inturn.key_cursor WHERE ready_at IS NOT NULL").rowcount
        ):
            connection.execute("CALL inturn.apply()")

    with ThreadPoolExecutor(6) as threads:
        calls = [threads.submit(call, share) for share in shares]

        def calls_done() -> bool:
            return all(future.done() for future in calls)

        appliers = [threads.submit(work) for _ in range(2)]
        for future in [*calls, *appliers]:
            future.result()
    for key in "abcdefghij":
        assert effects(given, key) == list(range(1, 31))
        assert state(given, key) == ("idle", 30)


# Waiting too long.


def test_a_key_that_waits_too_long_is_held_and_the_missing_number_frees_it(given: Database) -> None:
    given.execute("SELECT inturn.set_topic('given', gap_timeout => '100 ms')")
    put(given, "x", 1, 3)
    apply(given)
    assert state(given) == ("waiting", 1)
    until(lambda: applied(given) and state(given)[0] == "held", "held")
    assert given.value("SELECT last_error FROM inturn.key_cursor") == (
        "command 2 was not appended within the topic's gap_timeout"
    )
    put(given, "x", 2)
    assert state(given) == ("ready", 1)
    apply(given)
    assert effects(given) == [1, 2, 3]
    given.execute("SELECT inturn.set_topic('given', gap_timeout => '0')")
    put(given, "x", 5)
    assert given.value("SELECT ready_at FROM inturn.key_cursor") is None


def test_a_key_held_for_a_gap_can_be_given_more_time(given: Database) -> None:
    given.execute("SELECT inturn.set_topic('given', gap_timeout => '1 ms')")
    put(given, "x", 2)
    until(lambda: applied(given) and state(given)[0] == "held", "held")
    given.execute("SELECT inturn.set_topic('given', gap_timeout => '1 hour')")
    given.execute("SELECT inturn.retry('given', 'x')")
    apply(given)
    assert state(given) == ("waiting", 0)


def test_a_paused_key_that_waits_stays_paused(given: Database) -> None:
    put(given, "x", 1, 3)
    given.execute("SELECT inturn.pause('given', 'x')")
    put(given, "x", 2)
    apply(given)
    assert (state(given), effects(given)) == (("paused", 0), [])
    given.execute("SELECT inturn.resume('given', 'x')")
    apply(given)
    assert effects(given) == [1, 2, 3]
    put(given, "x", 5)
    given.execute("SELECT inturn.pause('given', 'x')")
    assert state(given) == ("paused", 3)
    given.execute("SELECT inturn.resume('given', 'x')")
    assert state(given) == ("waiting", 3)


# Operators.


def test_fill_gap_passes_over_the_missing_number_and_its_late_append_is_refused(given: Database) -> None:
    put(given, "x", 1, 3)
    apply(given)
    given.execute("SELECT inturn.fill_gap('given', 'x', 2, 'lost at A, ticket 99')")
    apply(given)
    assert effects(given) == [1, 3]
    assert state(given) == ("idle", 3)
    assert given.execute("SELECT seq, skipped_by, reason FROM inturn.skip") == [
        (2, "operator", "lost at A, ticket 99")
    ]
    assert given.execute("SELECT action, seq FROM inturn.operator_action WHERE action <> 'create'") == [
        ("fill-gap", 2)
    ]
    late = refusal(given, "SELECT inturn.append('given', 'x', 'insert', seq => 2)")
    assert late.sqlstate == PASSED
    assert late.message == "seq 2 of key 'x' of topic 'given' was skipped"


def test_fill_gap_of_one_of_two_leaves_the_key_waiting_for_the_other(given: Database) -> None:
    put(given, "x", 1, 4)
    apply(given)
    given.execute("SELECT inturn.fill_gap('given', 'x', 2, 'lost')")
    assert state(given) == ("waiting", 2)
    put(given, "x", 3)
    apply(given)
    assert effects(given) == [1, 3, 4]


@pytest.mark.parametrize(
    ("seq", "reason", "sqlstate", "says"),
    [
        (1, "no", REFUSED, "has command 1: it is not missing"),
        (3, "no", REFUSED, "waits for 2, not 3"),
        (4, "no", REFUSED, "has command 4: it is not missing"),
        (2, "", NO_REASON, "was given no reason"),
    ],
)
def test_fill_gap_of_anything_else_is_refused(
    given: Database, seq: int, reason: str, sqlstate: str, says: str
) -> None:
    put(given, "x", 1, 4)
    apply(given)
    found = refusal(given, f"SELECT inturn.fill_gap('given', 'x', {seq}, '{reason}')")
    assert found.sqlstate == sqlstate
    assert says in found.message
    assert state(given) == ("waiting", 1)


def test_fill_gap_waits_for_the_open_append_of_that_number(given: Database) -> None:
    put(given, "x", 1, 3)
    apply(given)
    caller, operator = given.session(), given.session()
    put(caller, "x", 2)
    busy = refusal(given, "SET lock_timeout = '20 ms'; SELECT inturn.fill_gap('given', 'x', 2, 'no')")
    assert busy.sqlstate == "IT042"
    assert f"is in hand: a session (backend {caller.pid}" in busy.message
    filling = operator.begin("SELECT inturn.fill_gap('given', 'x', 2, 'no')")
    assert blocked(given, operator, filling)
    caller.commit()
    assert "has command 2: it is not missing" in str(filling.exception())
    operator.rollback()
    apply(given)
    assert effects(given) == [1, 2, 3]


def test_cancel_rest_passes_over_gaps_too(given: Database) -> None:
    put(given, "x", 1, 3, 6)
    apply(given)
    given.execute("SELECT inturn.cancel_rest('given', 'x', 'closed')")
    assert state(given) == ("idle", 6)
    assert [seq for (seq,) in given.execute("SELECT seq FROM inturn.skip ORDER BY 1")] == [2, 3, 4, 5, 6]
    put(given, "x", 7)
    apply(given)
    assert effects(given) == [1, 7]


def test_skip_of_a_missing_number_is_refused(given: Database) -> None:
    put(given, "x", 2)
    found = refusal(given, "SELECT inturn.skip('given', 'x', 1, 'no')")
    assert found.sqlstate == REFUSED


def test_replay_where_callers_number_is_refused(given: Database) -> None:
    put(given, "x", 1)
    apply(given)
    found = refusal(given, "SELECT inturn.replay('given', 'x', 1, 'again')")
    assert (found.sqlstate, "has its numbers from its callers" in found.message) == (REFUSED, True)


def test_a_failing_command_holds_the_key_and_later_numbers_wait(given: Database) -> None:
    given.execute("SELECT inturn.set_topic('given', max_attempts => 1)")
    put(given, "x", 1, name="fail")
    put(given, "x", 2, 4)
    apply(given)
    assert state(given) == ("held", 0)
    put(given, "x", 3)
    assert state(given) == ("held", 0)
    given.execute("SELECT inturn.skip('given', 'x', 1, 'no')")
    apply(given)
    assert effects(given) == [2, 3, 4]


def test_numbering_is_settled_when_the_topic_is_created(given: Database) -> None:
    assert refusal(given, "SELECT inturn.create_topic('given', 'sql:app.apply_order')").sqlstate == "IT010"
    for setting in ("numbering => 'none'", "first_seq => 5", "max_ahead => 0", "gap_timeout => '-1 s'"):
        found = refusal(given, f"SELECT inturn.create_topic('new', {setting})")
        assert (found.sqlstate, setting.split()[0] in found.message) == ("IT011", True)
