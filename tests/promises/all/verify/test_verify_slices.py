"""`verify` goes through everything slice by slice, leaves nothing out, and reads no more than a slice."""

from __future__ import annotations

import pytest
from support.database import Database
from support.logins import login
from support.plans import believe, cost
from support.process import run_inturn
from support.refusal import refusal
from support.roles import OWNER
from support.verifying import LOAD, OF_A, undone, verified

#: Of a key that nothing else knows.
_STRAYS = [
    "command_log (topic, key, seq, name, payload) VALUES ('orders', 'z', 1, 'n', '{}')",
    "key_sequence (topic, key) VALUES ('orders', 'z')",
    "ticket (topic, key, epoch, applied_seq, ready_at) VALUES ('orders', 'z', 0, 0, now())",
    "key_mark (topic, key, epoch, attempts) VALUES ('orders', 'z', 0, 1)",
    (
        "turn (topic, key, epoch, from_seq, to_seq, applied_seq, drained, outcome, applier, started_at)"
        " VALUES ('orders', 'z', 1, 1, 1, 1, true, 'applied', 'me', now())"
    ),
    "skip (topic, key, seq, epoch, skipped_by) VALUES ('orders', 'z', 1, 1, 'handler')",
    "operator_action (id, topic, key, seq, action) VALUES (1, 'orders', 'z', 1, 'skip')",
]


def test_a_history_of_turns_alone_is_nothing_to_complain_of(history: Database) -> None:
    for table in ("skip", "operator_action", "turn", "ticket", "key_mark", "key_sequence", "command_log"):
        history.execute(f"DELETE FROM inturn.{table}")
    history.execute("SELECT inturn.append('orders', 'x', 'insert')")
    history.execute("CALL inturn.apply()")
    assert verified(history) == []


@pytest.mark.parametrize("topic", ["order", None])
def test_a_topic_that_is_not_there_and_left_nothing_is_refused(history: Database, topic: str | None) -> None:
    """It is mistyped: to find nothing would say that all is well."""
    assert refusal(history, "SELECT * FROM inturn.verify(%s)", [topic]).sqlstate == "IT001"


@pytest.mark.parametrize(
    "times",
    [
        # Its transaction began long before its claim, which had to wait.
        "started_at = started_at - interval '1 day'",
        # The clock was put back by half a minute before it.
        "started_at = started_at - interval '30 s', finished_at = finished_at - interval '30 s'",
    ],
)
def test_what_waits_and_clocks_do_is_no_violation(history: Database, times: str) -> None:
    history.execute(f"UPDATE inturn.turn SET {times} WHERE {OF_A} AND epoch = 2")
    assert verified(history) == []


def test_slices_leave_no_key_out_not_even_one_between_two_of_them(history: Database) -> None:
    # Each table has a key of its own that no other has, around and between those of the log.
    history.execute("""
        INSERT INTO inturn.ticket (topic, key, epoch, applied_seq, ready_at) VALUES
            ('orders', 'a', 0, 0, now()), ('orders', 'zz', 0, 0, now()), ('gone', 'k', 0, 0, now());
        INSERT INTO inturn.key_mark (topic, key, epoch, attempts) VALUES ('orders', 'b!', 1, 1);
        INSERT INTO inturn.turn
            (topic, key, epoch, from_seq, to_seq, applied_seq, drained, outcome, applier, started_at)
        VALUES ('orders', 'a!', 1, 1, 1, 1, true, 'applied', 'me', now());
        INSERT INTO inturn.skip (topic, key, seq, epoch, skipped_by) VALUES ('orders', '!', 1, 1, 'handler');
        INSERT INTO inturn.operator_action (id, topic, key, seq, action) VALUES (1, 'orders', 'x', 1, 'skip');
    """)
    whole = history.execute(
        "SELECT * FROM inturn.verify('orders') UNION ALL SELECT * FROM inturn.verify('gone')"
    )
    strays = {(row[1], row[2]) for row in whole}
    assert strays == {
        *(("orders", key) for key in ("a\x01", "zz", "a!", "b!", "!", "x")),
        ("gone", "k"),
        ("gone", ""),
    }
    for commands in (1, 2, 3, 13, 1000):
        assert sorted(verified(history, commands), key=repr) == sorted(whole, key=repr)


def test_a_key_beyond_the_last_that_one_table_alone_has_is_found(history: Database) -> None:
    session = history.session(user=OWNER)
    for stray in _STRAYS:
        with undone(session):
            session.execute(f"INSERT INTO inturn.{stray}")
            found = session.execute("SELECT * FROM inturn.verify('orders')")
        assert {row[2] for row in found} == {"z"}, stray


def test_an_operator_may_verify_and_an_applier_may_not(history: Database) -> None:
    operator, applier = (
        history.connect(user=login(history, role).split("user=")[1].split()[0])
        for role in ("inturn_operator", "inturn_applier")
    )
    operator.execute("SELECT * FROM inturn.verify('orders')")
    assert refusal(applier, "SELECT * FROM inturn.verify('orders')").sqlstate == "42501"


@pytest.mark.parametrize("statistics", [(0, -1), (1000, 1000), (1, 1e9), None])
def test_a_slice_reads_its_own_keys_only_whatever_the_statistics_say(
    history: Database, statistics: tuple[int, float] | None
) -> None:
    for prefix in ("Before-", "order-"):
        history.execute(LOAD, [prefix, 10_000, 2])
    tables = ("command_log", "key_sequence", "ticket", "key_mark", "turn", "skip", "operator_action")
    believe(history, tables, statistics)
    connection = history.connect(user=OWNER)
    # The slice with all that operators did: nothing of it may be looked for in the whole topic.
    read = cost(connection, "SELECT * FROM inturn.verify('orders', 'a', 'e')")
    read += cost(connection, "SELECT * FROM inturn.verify_slice('orders', 'a', 16)")
    assert read < 700, "a slice of 5 keys is verified at the cost of all"


# -- much of it


def _verify_many(database: Database, keys: int, commands: int) -> None:
    database.execute(LOAD, ["order-", keys, commands])
    code, out, _ = run_inturn(database.dsn, "verify")
    print(out, end="")
    assert code == 0, out
    assert f"{keys * commands:,} commands" in out
    # The last but one of so many is found as well.
    database.execute(
        "DELETE FROM inturn.turn WHERE key = (SELECT max(key) FROM inturn.turn) AND epoch = %s",
        [commands - 1],
    )
    code, out, _ = run_inturn(database.dsn, "verify")
    assert (code, out.count("passed-unaccounted: ")) == (8, 1)


@pytest.mark.parametrize(
    ("keys", "commands"),
    [(12_000, 5), *(pytest.param(*size, marks=pytest.mark.rest) for size in [(20_000, 5), (1, 100_000)])],
)
def test_more_commands_than_a_slice_has(witness: Database, keys: int, commands: int) -> None:
    _verify_many(witness, keys, commands)


@pytest.mark.soak
@pytest.mark.parametrize(("keys", "commands"), [(200_000, 5), (1, 1_000_000)])
def test_a_million_commands(witness: Database, keys: int, commands: int) -> None:
    _verify_many(witness, keys, commands)
