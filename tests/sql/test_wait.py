"""inturn.wait and its parts: what comes back when, what is refused, and what a caller must not see."""

from __future__ import annotations

import psycopg
import pytest
from support.arrivals import arrive, number
from support.database import Database, until
from support.logins import connect_as
from support.refusal import Refusal, refusal
from support.roles import CALLER, OWNER

APPEND = "SELECT inturn.append('orders', %s, %s)"
APPLY = "CALL inturn.apply()"


def _append(database: Database, key: str, *names: str) -> None:
    for name in names:
        database.execute(APPEND, [key, name])


def _wait(database: Database, arguments: str) -> tuple[int, bool]:
    row: tuple[int, bool] = database.execute(f"SELECT * FROM inturn.wait({arguments})")[0]
    return row


def _refused(database: Database, arguments: str) -> Refusal:
    return refusal(database, f"SELECT inturn.wait({arguments})")


def _is_asleep(database: Database, pid: int) -> bool:
    return bool(database.value("SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = %s", [pid]))


def test_what_is_applied_is_there_at_once(witness: Database) -> None:
    _append(witness, "a", "insert", "update")
    witness.execute(APPLY)
    assert _wait(witness, "'orders', 'a', 2, '0 s'") == (2, False)
    assert _wait(witness, "'orders', 'a', 1, '0 s'") == (2, False)


def test_without_a_seq_it_waits_for_everything_committed_on_the_key(witness: Database) -> None:
    _append(witness, "a", "insert", "update")
    refused = _refused(witness, "'orders', 'a', timeout => '0 s'")
    assert refused.sqlstate == "IT065"
    assert refused.message == "key 'a' of topic 'orders' is not applied up to 2: it is at 0 and ready"
    witness.execute(APPLY)
    assert _wait(witness, "'orders', 'a', timeout => '0 s'") == (2, False)


def test_a_wait_ends_when_the_key_is_applied_meanwhile(witness: Database) -> None:
    waiter = witness.session(autocommit=True)
    waiting = waiter.begin("SELECT * FROM inturn.wait('orders', 'a', 2, NULL)")
    until(lambda: _is_asleep(witness, waiter.pid), "the wait")
    _append(witness, "a", "insert")
    witness.execute(APPLY)
    until(lambda: _is_asleep(witness, waiter.pid), "the wait goes on: the key is at 1")
    assert not waiting.done()
    _append(witness, "a", "update")
    witness.execute(APPLY)
    assert waiting.result(30) == [(2, False)]


def test_a_key_that_becomes_held_ends_the_wait_and_after_a_retry_it_is_waited_for_again(
    witness: Database,
) -> None:
    witness.execute("UPDATE inturn.topic SET max_attempts = 1")
    waiter = witness.session(autocommit=True)
    waiting = waiter.begin("SELECT * FROM inturn.wait('orders', 'a', 2, NULL)")
    until(lambda: _is_asleep(witness, waiter.pid), "the wait")
    _append(witness, "a", "insert", "fail")
    witness.execute(APPLY)
    error = waiting.exception(30)
    assert isinstance(error, psycopg.Error)
    assert error.sqlstate == "IT066"
    (held_at,) = witness.execute(
        "SELECT to_char(held_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') FROM inturn.key_cursor"
    )[0]
    assert error.diag.message_primary == (
        "key 'a' of topic 'orders' is not applied up to 2:"
        f" it is at 1 and held, until an operator acts on it, since {held_at} UTC"
    )
    assert _wait(witness, "'orders', 'a', 1") == (1, False), "what is applied already is"
    witness.execute("UPDATE inturn.command_log SET name = 'update' WHERE seq = 2")
    witness.execute("SELECT inturn.retry('orders', 'a')")
    witness.execute(APPLY)
    assert _wait(witness, "'orders', 'a', 2, '0 s'") == (2, False)


def test_a_skipped_command_ends_the_wait_and_says_so(witness: Database) -> None:
    witness.execute("UPDATE inturn.topic SET max_attempts = 1")
    _append(witness, "a", "fail", "insert")
    witness.execute(APPLY)
    waiter = witness.session(autocommit=True)
    witness.execute("SELECT inturn.skip('orders', 'a', 1, 'wrong')")
    assert waiter.begin("SELECT * FROM inturn.wait('orders', 'a', 1, NULL)").result(30) == [(1, True)]
    witness.execute("SELECT inturn.cancel_rest('orders', 'a', 'wrong too')")
    assert _wait(witness, "'orders', 'a', 2, '0 s'") == (2, True)
    witness.execute("SELECT inturn.replay('orders', 'a', 2, 'right after all')")
    assert _refused(witness, "'orders', 'a', timeout => '0 s'").sqlstate == "IT065"
    witness.execute(APPLY)
    assert _wait(witness, "'orders', 'a', timeout => '0 s'") == (3, False)


@pytest.mark.parametrize("whole", [True, False])
def test_a_pause_that_ended_during_the_wait_is_not_named_as_what_keeps_it(
    witness: Database, *, whole: bool
) -> None:
    _append(witness, "a", "insert")
    pause = "pause_topic('orders'" if whole else "pause('orders', 'a'"
    witness.execute(f"SELECT inturn.{pause}, until => clock_timestamp() + interval '500 ms')")
    refused = _refused(witness, "'orders', 'a', 1, '600 ms'")
    assert refused.message == "key 'a' of topic 'orders' is not applied up to 1: it is at 0 and ready"


def test_what_a_key_that_was_forgotten_had_applied_is_not_waited_for(witness: Database) -> None:
    """It would never come: if the key comes back, it goes on above."""
    witness.execute("UPDATE inturn.topic SET retain = '0', forget_idle_after = '0'")
    _append(witness, "a", "insert", "update")
    witness.execute(APPLY)
    assert witness.execute("SELECT * FROM inturn.prune_batch('orders')")[0][3] == 1
    assert _wait(witness, "'orders', 'a', 2, '0 s'") == (2, False)
    assert "nothing was ever committed on it" in _refused(witness, "'orders', 'a', 3, '0 s'").message
    _append(witness, "a", "insert")
    assert _wait(witness, "'orders', 'a', 2, '0 s'") == (2, False)
    assert "it is at 2 and ready" in _refused(witness, "'orders', 'a', 3, '0 s'").message


#: What cannot be waited for, the SQLSTATE, and a part of the message.
REFUSED = [
    ("'order', 'a', 1", "IT001", "topic 'order' does not exist"),
    ("NULL, 'a', 1", "IT001", "topic NULL does not exist"),
    ("'orders', '', 1", "IT002", "key is empty"),
    ("'orders', 'a', idempotency_key => ''", "IT005", "idempotency key"),
    ("'orders', 'a'", "IT040", "key 'a' of topic 'orders' has no commands"),
    ("'orders', 'a', -1", "22023", "seq is -1"),
    ("'orders', 'a', 1, '-1 s'", "22023", "timeout is -00:00:01"),
    ("'orders', 'a', 1, '0 s'", "IT065", "nothing was ever committed on it"),
    ("'orders', 'a', 9223372036854775807, '0 s'", "IT065", "nothing was ever committed on it"),
    ("'orders', 'a', timeout => '0 s', idempotency_key => 'k'", "IT065", "idempotency key 'k'"),
    ("'given', 'a', 0, '0 s'", "IT065", "nothing was ever committed on it"),
]


def test_what_cannot_be_waited_for_is_refused_by_name(witness: Database) -> None:
    witness.execute("SELECT inturn.create_topic('given', numbering => 'given', first_seq => 0)")
    caller = witness.connect(user=CALLER)
    for arguments, sqlstate, message in REFUSED:
        refused = refusal(caller, f"SELECT inturn.wait({arguments})")
        assert refused.sqlstate == sqlstate, arguments
        assert message in refused.message
        assert witness.value("SELECT count(*) FROM inturn.waiter") == 0, arguments


@pytest.mark.parametrize("timeout", ["'170000 years'", "'2147483647 months'", "NULL"])
def test_a_timeout_may_be_as_long_as_an_interval(witness: Database, timeout: str) -> None:
    waiter = witness.session(autocommit=True)
    waiting = waiter.begin(f"SELECT * FROM inturn.wait('orders', 'a', 1, {timeout})")
    until(lambda: _is_asleep(witness, waiter.pid), "the wait")
    _append(witness, "a", "insert")
    witness.execute(APPLY)
    assert waiting.result(30) == [(1, False)]


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_transaction_that_could_never_see_the_end_is_refused(witness: Database, isolation: str) -> None:
    session = witness.connect(autocommit=False, user=CALLER)
    session.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
    assert refusal(session, "SELECT inturn.wait('orders', 'a', 1)").sqlstate == "IT031"


@pytest.mark.parametrize("savepoint", ["", "SAVEPOINT s"])
def test_a_transaction_does_not_wait_for_what_it_appended_itself(witness: Database, savepoint: str) -> None:
    session = witness.connect(autocommit=False, user=CALLER)
    if savepoint:
        session.execute(savepoint)
    session.execute(APPEND, ["a", "insert"])
    refused = refusal(session, "SELECT inturn.wait('orders', 'a', 1)")
    assert refused.sqlstate == "IT031"
    assert "applied only after its commit" in refused.message


def test_a_transaction_that_only_read_may_wait(witness: Database) -> None:
    waiter = witness.session()
    waiter.execute("SELECT count(*) FROM app.witness")
    waiting = waiter.begin("SELECT * FROM inturn.wait('orders', 'a', 1, NULL)")
    until(lambda: _is_asleep(witness, waiter.pid), "the wait")
    _append(witness, "a", "insert")
    witness.execute(APPLY)
    assert waiting.result(30) == [(1, False)]
    assert waiter.execute("SELECT count(*) FROM app.witness") == [(1,)], "and sees the effect"


def test_it_writes_nothing_so_that_it_works_on_a_standby(witness: Database) -> None:
    _append(witness, "a", "insert")
    witness.execute(APPLY)
    session = witness.connect(user=CALLER)
    session.execute("SET default_transaction_read_only = on")
    assert session.execute("SELECT * FROM inturn.wait('orders', 'a', 1)").fetchall() == [(1, False)]


def test_where_numbers_are_given_on_arrival_it_waits_for_what_has_arrived(database: Database) -> None:
    database.execute("SELECT inturn.create_topic('posts', numbering => 'arrival')")
    look = "SELECT seq, mark, outcome FROM inturn.wait_state('posts', 'a', %s::bigint, NULL, %s::bigint)"
    assert _refused(database, "'posts', 'a'").sqlstate == "IT040"
    arrive(database, "a", "insert")
    arrive(database, "b", "insert")
    (seq, mark, outcome) = database.execute(look, [None, None])[0]
    assert (seq, outcome) == (None, "pending")
    arrive(database, "a", "later")
    database.execute("UPDATE inturn.intake SET left_because = 'locked' WHERE name = 'later'")
    assert number(database) == 3
    (seq, again, outcome) = database.execute(look, [seq, mark])[0]
    assert (seq, again, outcome) == (2, mark, "pending")
    assert _refused(database, "'posts', 'a', timeout => '0 s'").sqlstate == "IT065"


def _look(database: Database, mark: int | None = None) -> tuple[tuple[int | None, int, str], int]:
    """Look once at key `a` of topic posts; return what is known, and how many entries of arrivals it read."""
    counter = "SELECT pg_stat_get_xact_tuples_returned('inturn.intake_pkey'::regclass)"
    look = "SELECT seq, mark, outcome FROM inturn.wait_state('posts', 'a', NULL, NULL, %s::bigint)"
    with database.connect(user=OWNER, autocommit=False) as connection:
        before = connection.execute(counter).fetchall()[0][0]
        found = connection.execute(look, [mark]).fetchall()[0]
        read = connection.execute(counter).fetchall()[0][0] - before
    return found, read


def test_a_look_reads_what_has_arrived_back_to_the_last_of_its_key_and_no_wait_twice(
    database: Database,
) -> None:
    """A backlog may be long, and a wait looks once a second at least."""
    database.execute("SELECT inturn.create_topic('posts', numbering => 'arrival')")
    others = "SELECT inturn.append('posts', 'b' || n, 'insert') FROM generate_series(1, 300) n"
    arrive(database, "a", "first")
    database.execute(others)
    (_, mark, outcome), read = _look(database)
    assert (outcome, read >= 300) == ("pending", True)
    assert _look(database, mark) == ((None, mark, "pending"), 1)
    arrive(database, "a", "last")
    (_, later, _), read = _look(database)
    assert (later > mark, read) == (True, 1)
    assert number(database, 1) == 1
    found, read = _look(database, mark)
    assert (found, read <= 2) == ((1, mark, "pending"), True), "first has a number"
    assert _look(database, later)[0] == (None, later, "pending")


def test_a_wait_goes_on_until_the_last_of_what_had_arrived_has_a_number(database: Database) -> None:
    """Whatever transactions it came by, whichever is the older, and whatever passes left behind."""
    database.execute("SELECT inturn.create_topic('posts', numbering => 'arrival')")
    old, running = database.session(), database.session()
    arrive(old, "b", "insert")
    arrive(running, "b", "insert")
    arrive(database, "a", "first")
    arrive(old, "a", "second")  # by an older transaction than the first
    old.commit()
    (_, mark, _), _ = _look(database)
    assert number(database, 2) == 2
    (seq, older, outcome), _ = _look(database, mark)
    assert (seq, outcome, older < mark) == (None, "pending", True), "the second has none yet"
    assert number(database) == 1
    assert _look(database, older)[0] == (2, older, "pending")
    arrive(running, "a", "third")  # the pass has seen it running
    running.commit()
    (seq, mark, _), _ = _look(database)
    assert seq is None
    operator = database.session()
    operator.execute("SELECT FROM inturn.key_sequence WHERE key = 'a' FOR UPDATE")
    assert number(database) == 1
    assert _look(database, mark)[0] == (None, mark, "pending"), "it was left behind"
    operator.rollback()
    until(lambda: number(database), "a pass that looks at what was left behind")
    assert _look(database, mark)[0] == (3, mark, "pending")


def test_a_command_that_has_arrived_is_waited_for_by_its_idempotency_key(database: Database) -> None:
    database.execute("SELECT inturn.create_topic('posts', numbering => 'arrival')")
    look = "SELECT seq, outcome FROM inturn.wait_state('posts', 'a', NULL, %s)"
    assert database.execute(look, ["mine"]) == [(None, "pending")]
    arrive(database, "a", "other")
    database.execute("SELECT inturn.append('posts', 'a', 'insert', idempotency_key => 'mine')")
    assert database.execute(look, ["mine"]) == [(None, "pending")]
    number(database)
    assert database.execute(look, ["mine"]) == [(2, "pending")]
    for _ in range(2):
        database.execute(
            "SELECT inturn.advance('posts', 'a', epoch, seq) FROM inturn.claim('{posts}', 1, NULL, 'me')"
        )
    assert database.execute(look, ["mine"])[0][0] == 2


def test_a_caller_sees_no_payload_and_no_error_of_anybody(witness: Database) -> None:
    witness.execute("UPDATE inturn.topic SET max_attempts = 1")
    witness.execute("SELECT inturn.append('orders', 'a', 'fail', '{\"secret\": 1}')")
    witness.execute(APPLY)
    caller = connect_as(witness, "inturn_caller")
    assert "refused a" in witness.value("SELECT last_error FROM inturn.key_cursor")
    refused = refusal(caller, "SELECT inturn.wait('orders', 'a', 1)")
    assert refused.sqlstate == "IT066"
    row = caller.execute("SELECT w::text FROM inturn.wait_state('orders', 'a', 1) w").fetchall()
    for text in (refused.message, refused.hint, str(row)):
        assert "held" in text or text == refused.hint
        assert "secret" not in text
        assert "refused a" not in text
    assert caller.execute("SELECT inturn.announce_wait('orders', 'a')").fetchone() is not None
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        caller.execute("SELECT * FROM inturn.waiter")


def test_the_state_is_said_with_its_beginning(witness: Database) -> None:
    _append(witness, "a", "insert")
    look = "SELECT state, since IS NOT NULL, says FROM inturn.wait_state('orders', 'a', 1)"
    witness.execute("SELECT inturn.pause_topic('orders', 'for a while')")
    state, since, says = witness.execute(look)[0]
    assert (state, since) == ("topic paused", True)
    assert "its topic paused since" in says
    witness.execute("SELECT inturn.pause('orders', 'a', 'for a while')")
    assert witness.execute(look)[0][:2] == ("paused", True)


# Announcements.


def test_all_who_wait_for_a_key_share_an_announcement_and_a_channel(witness: Database) -> None:
    first = witness.value("SELECT inturn.announce_wait('orders', 'a')")
    assert witness.value("SELECT inturn.announce_wait('orders', 'a')") == first
    assert witness.value("SELECT inturn.announce_wait('orders', 'b')") != first
    assert witness.execute(
        "SELECT key, until <= clock_timestamp() + '20 s' FROM inturn.waiter ORDER BY 1"
    ) == [
        ("a", True),
        ("b", True),
    ]
    witness.execute("UPDATE inturn.waiter SET until = clock_timestamp() + '9 s' WHERE key = 'a'")
    assert witness.value("SELECT inturn.announce_wait('orders', 'a')") == first
    assert witness.value("SELECT count(*) FROM inturn.waiter WHERE key = 'a'") == 2, "announced anew"


def test_what_dead_sessions_announced_is_deleted_by_others(witness: Database) -> None:
    witness.execute("SELECT count(inturn.announce_wait('orders', 'a' || n)) FROM generate_series(1, 50) n")
    witness.execute("UPDATE inturn.waiter SET until = clock_timestamp() - interval '1 s' WHERE id <= 40")
    blocker = witness.connect(autocommit=False, user=OWNER)
    blocker.execute("SELECT FROM inturn.waiter WHERE id = 7 FOR UPDATE")
    witness.execute("SELECT count(inturn.announce_wait('orders', 'b' || n)) FROM generate_series(1, 50) n")
    assert witness.execute("SELECT id FROM inturn.waiter WHERE until < now()") == [(7,)]
    assert witness.value("SELECT count(*) FROM inturn.waiter") == 61


def test_a_caller_who_announces_without_end_fills_no_more_than_there_is_room_for(witness: Database) -> None:
    witness.execute("""
        CREATE OR REPLACE FUNCTION inturn._max_waiter_octets() RETURNS bigint LANGUAGE sql IMMUTABLE
        AS 'SELECT 81920'
    """)
    announced = witness.value(
        "SELECT count(inturn.announce_wait('orders', 'a' || n)) FROM generate_series(1, 5000) n"
    )
    assert 100 < announced < 5000
    assert witness.value("SELECT pg_relation_size('inturn.waiter')") == 81920
    assert witness.value("SELECT inturn.announce_wait('orders', 'z')") is None


def test_once_the_waits_that_filled_it_are_over_there_is_room_again(witness: Database) -> None:
    witness.execute("""
        CREATE OR REPLACE FUNCTION inturn._max_waiter_octets() RETURNS bigint LANGUAGE sql IMMUTABLE
        AS 'SELECT 81920'
    """)
    announce = "SELECT count(inturn.announce_wait('orders', 'a' || n)) FROM generate_series(1, 3000) n"
    assert 100 < witness.value(announce) < 3000
    witness.execute("UPDATE inturn.waiter SET until = clock_timestamp() - interval '1 s'")

    def is_room() -> bool:
        witness.value(announce.replace("'a'", "'b'").replace("3000", "200"))
        witness.execute("VACUUM inturn.waiter")  # as autovacuum does
        return witness.value("SELECT inturn.announce_wait('orders', 'z')") is not None

    until(is_room, "room")
