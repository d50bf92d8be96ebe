"""`inturn verify`: every kind of violation, planted by hand, is found; none beside callers and appliers."""

from __future__ import annotations

import json
import random
import re
import shlex
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from psycopg import errors
from support.crowd import Crowd
from support.database import Database, until
from support.history import make_history
from support.logins import login
from support.oracle import Oracle
from support.plans import cost
from support.process import InturnProcess, run_inturn
from support.refusal import refusal
from support.terminal import on_terminal

# What would refuse the plants; a superuser could have dropped it too.
_NO_CONSTRAINTS = """
DO $$ DECLARE c record; BEGIN
    FOR c IN SELECT conname, conrelid::regclass AS name FROM pg_constraint
             WHERE connamespace = 'inturn'::regnamespace AND contype IN ('p', 'c') AND conrelid <> 0 LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', c.name, c.conname);
    END LOOP;
END $$
"""
_OF_A = "topic = 'orders' AND key = 'a'"
_COPY_TURN = (
    "INSERT INTO inturn.turn (topic, key, epoch, from_seq, to_seq, applied_seq, drained, outcome, applier,"
    " started_at, finished_at) SELECT topic, {key}, {epoch}, {lo}, {hi}, {at}, true, '{outcome}', applier,"
    f" started_at, finished_at FROM inturn.turn WHERE {_OF_A} AND epoch = 10"
)
_TICKET = (
    "INSERT INTO inturn.ticket (topic, key, epoch, applied_seq, ready_at)"
    " VALUES ('orders', 'a', {epoch}, {at}, '{ready_at}')"
)
_MARK = "INSERT INTO inturn.key_mark (topic, key, epoch, attempts) VALUES ('orders', {key}, {epoch}, 1)"

#: what is planted, by its SQL → what must be found of key a: (violation, seq), and nothing else;
#: of b where that is named.
PLANTS: dict[str, tuple[str, set[tuple[str, int | None]]]] = {
    # P1
    "a number lost": (f"DELETE FROM inturn.command_log WHERE {_OF_A} AND seq = 2", {("seq-missing", 2)}),
    "the first numbers lost": (
        f"DELETE FROM inturn.command_log WHERE {_OF_A} AND seq < 3",
        {("seq-missing", 1)},
    ),
    "a number given twice": (
        f"INSERT INTO inturn.command_log SELECT * FROM inturn.command_log WHERE {_OF_A} AND seq = 3",
        {("seq-repeated", 3)},
    ),
    "a number twice and the next one lost": (
        f"UPDATE inturn.command_log SET seq = 2 WHERE {_OF_A} AND seq = 3",
        {("seq-repeated", 2), ("seq-missing", 3)},
    ),
    "a number below 1": (
        (
            "INSERT INTO inturn.command_log SELECT topic, key, 0, name, payload FROM inturn.command_log"
            f" WHERE {_OF_A} AND seq = 1"
        ),
        {("seq-below-one", 0)},
    ),
    "a row in key_sequence lost": (
        f"DELETE FROM inturn.key_sequence WHERE {_OF_A}",
        {("sequence-row-missing", None)},
    ),
    "a row in key_sequence twice": (
        f"INSERT INTO inturn.key_sequence SELECT * FROM inturn.key_sequence WHERE {_OF_A}",
        {("sequence-row-repeated", None)},
    ),
    "a last turn from which the next number would be too high": (
        f"UPDATE inturn.turn SET applied_seq = 13 WHERE {_OF_A} AND epoch = 10",
        {("cursor-outside", 13), ("passed-unaccounted", 13)},
    ),
    # P2
    "an epoch used by two turns": (
        f"UPDATE inturn.turn SET epoch = 1 WHERE {_OF_A} AND epoch = 2",
        {("epoch-repeated", 4)},
    ),
    "an epoch used by a turn and an operator": (
        f"UPDATE inturn.turn SET epoch = 3 WHERE {_OF_A} AND epoch = 2",
        {("epoch-repeated", 4)},
    ),
    "an epoch used by a turn, and where the key went idle": (
        _COPY_TURN.format(key="key", epoch=4, lo=6, hi=5, at=5, outcome="idle"),
        {("epoch-repeated", 6)},
    ),
    "an epoch below 1": (
        (
            "INSERT INTO inturn.turn SELECT topic, key, 0, 1, 0, 0, false, 'retrying', applier, started_at,"
            f" finished_at, 'x' FROM inturn.turn WHERE {_OF_A} AND epoch = 1"
        ),
        {("epoch-below-one", 1)},
    ),
    "epochs against the order of seqs": (
        f"UPDATE inturn.turn SET epoch = 14 - epoch, applied_seq = 12 WHERE {_OF_A} AND epoch IN (4, 10)",
        {("epoch-order", 6), ("epoch-order", 5)},
    ),
    "a turn that ended before the one before it": (
        (
            f"UPDATE inturn.turn SET started_at = started_at - interval '1 day',"
            f" finished_at = finished_at - interval '1 day' WHERE {_OF_A} AND epoch = 2"
        ),
        {("turn-order", 4)},
    ),
    "a turn that ended before it began": (
        f"UPDATE inturn.turn SET started_at = finished_at + interval '1 day' WHERE {_OF_A} AND epoch = 2",
        {("turn-malformed", 4)},
    ),
    "an applied turn with an error": (
        f"UPDATE inturn.turn SET error = 'x' WHERE {_OF_A} AND epoch = 4",
        {("turn-malformed", 5)},
    ),
    "a failed turn without an error": (
        f"UPDATE inturn.turn SET error = NULL WHERE {_OF_A} AND epoch = 1",
        {("turn-malformed", 1)},
    ),
    "an outcome that is none": (
        f"UPDATE inturn.turn SET outcome = 'vanished' WHERE {_OF_A} AND epoch = 1",
        {("turn-malformed", 1)},
    ),
    "an applied turn that applied nothing": (
        f"UPDATE inturn.turn SET outcome = 'applied', error = NULL WHERE {_OF_A} AND epoch = 2",
        {("turn-malformed", 4)},
    ),
    "where the key went idle, as if it had applied something": (
        f"UPDATE inturn.turn SET from_seq = 6 WHERE {_OF_A} AND epoch = 6",
        {("turn-malformed", 6)},
    ),
    "where the key went idle, with an error": (
        f"UPDATE inturn.turn SET error = 'x' WHERE {_OF_A} AND epoch = 6",
        {("turn-malformed", 7)},
    ),
    # P3
    "a second ticket": (
        (
            "INSERT INTO inturn.ticket"
            " SELECT topic, key, epoch + 1, applied_seq, ready_at FROM inturn.ticket WHERE key = 'b'"
        ),
        {("ticket-repeated", None)},
    ),
    "the same ticket twice": (
        "INSERT INTO inturn.ticket SELECT * FROM inturn.ticket WHERE key = 'b'",
        {("ticket-repeated", None)},
    ),
    "a ticket of an epoch behind the last turn": (
        _TICKET.format(epoch=9, at=12, ready_at="now"),
        {("ticket-behind", 12), ("epoch-ahead", None)},
    ),
    "a ticket of an epoch behind where the key went idle": (
        _COPY_TURN.format(key="'b'", epoch=1, lo=1, hi=0, at=0, outcome="idle"),
        {("ticket-behind", 0)},
    ),
    "a ticket of a number behind the last turn": (
        _TICKET.format(epoch=10, at=11, ready_at="now"),
        {("ticket-behind", 11), ("passed-beyond-cursor", 12)},
    ),
    "a stray mark of a key without a ticket": (
        _MARK.format(key="'a'", epoch=10),
        {("mark-stray", None)},
    ),
    "a stray mark under another epoch than the ticket's": (
        _MARK.format(key="'b'", epoch=1),
        {("mark-stray", None)},
    ),
    "a stray mark of which the ticket does not tell": (
        _MARK.format(key="'b'", epoch=0),
        {("mark-stray", None)},
    ),
    "a mark twice": (
        (
            "UPDATE inturn.key_cursor SET attempts = 1 WHERE key = 'b';"
            " INSERT INTO inturn.key_mark SELECT * FROM inturn.key_mark WHERE key = 'b'"
        ),
        {("mark-stray", None)},
    ),
    "a mark lost": (
        "UPDATE inturn.ticket SET marked = true WHERE key = 'b'",
        {("mark-missing", None)},
    ),
    "the cursor beyond the last command": (
        f"UPDATE inturn.turn SET to_seq = 13, applied_seq = 13 WHERE {_OF_A} AND epoch = 10",
        {("cursor-outside", 13)},
    ),
    "the cursor below 0": (
        "UPDATE inturn.key_cursor SET applied_seq = -1 WHERE key = 'b'",
        {("cursor-outside", -1)},
    ),
    "a turn that applied less than it says elsewhere": (
        f"UPDATE inturn.turn SET to_seq = 2 WHERE {_OF_A} AND epoch = 1",
        {("passed-unaccounted", 3)},
    ),
    "the last turn lost": (
        f"DELETE FROM inturn.turn WHERE {_OF_A} AND epoch = 10",
        {("idle-pending", 11)},
    ),
    "the last turn lost of a key that is awake": (
        _TICKET.format(epoch=10, at=12, ready_at="now")
        + f"; DELETE FROM inturn.turn WHERE {_OF_A} AND epoch = 10",
        {("passed-unaccounted", 11)},
    ),
    "a turn taken for none": (
        f"UPDATE inturn.turn SET outcome = 'idle' WHERE {_OF_A} AND epoch = 4",
        {("turn-malformed", 5), ("passed-unaccounted", 5)},
    ),
    "the first turn lost": (
        f"DELETE FROM inturn.turn WHERE {_OF_A} AND epoch = 1",
        {("passed-unaccounted", 1)},
    ),
    "an operator's skip lost": (
        f"DELETE FROM inturn.skip WHERE {_OF_A} AND seq = 4",
        {("passed-unaccounted", 4), ("action-without-skip", 4)},
    ),
    "a number applied twice": (
        f"UPDATE inturn.turn SET from_seq = 3 WHERE {_OF_A} AND epoch = 2",
        {("passed-twice", 3)},
    ),
    "a number skipped and applied": (
        f"UPDATE inturn.turn SET to_seq = 4 WHERE {_OF_A} AND epoch = 1",
        {("passed-twice", 4)},
    ),
    "a number skipped twice": (
        f"INSERT INTO inturn.skip SELECT * FROM inturn.skip WHERE {_OF_A} AND seq = 4",
        {("passed-twice", 4), ("epoch-repeated", 4)},
    ),
    "a turn beyond the cursor": (
        _COPY_TURN.format(key="key", epoch=11, lo=13, hi=14, at=12, outcome="applied"),
        {("passed-beyond-cursor", 13)},
    ),
    "a skip beyond the cursor": (
        (
            "INSERT INTO inturn.skip SELECT topic, key, 13, 11, skipped_by, reason FROM inturn.skip"
            f" WHERE {_OF_A} AND seq = 4"
        ),
        {("passed-beyond-cursor", 13), ("epoch-ahead", None), ("skip-without-action", 13)},
    ),
    "a skipped turn's skip lost": (
        f"DELETE FROM inturn.skip WHERE {_OF_A} AND seq = 6",
        {("turn-without-skip", 6), ("passed-unaccounted", 6)},
    ),
    "a cancelled turn's last skip lost": (
        f"DELETE FROM inturn.skip WHERE {_OF_A} AND seq = 8",
        {("passed-unaccounted", 8)},
    ),
    "a skip that its turn says nothing of": (
        f"UPDATE inturn.turn SET outcome = 'held' WHERE {_OF_A} AND epoch = 5",
        {("skip-without-turn", 6), ("epoch-repeated", 6)},
    ),
    "a skip of no turn": (
        f"UPDATE inturn.skip SET skipped_by = 'handler' WHERE {_OF_A} AND seq = 4",
        {("skip-without-turn", 4), ("action-without-skip", 4), ("epoch-repeated", 5)},
    ),
    # P4
    "a lost wake-up": (
        "UPDATE inturn.key_cursor SET ready_at = NULL WHERE key = 'b'",
        {("idle-pending", 1), ("ticket-endless", 1)},
    ),
    "a lost ticket": (
        "DELETE FROM inturn.ticket WHERE key = 'b'",
        {("idle-pending", 1), ("idle-undrained", 0)},
    ),
    "an append that woke nobody": (
        "INSERT INTO inturn.command_log VALUES ('orders', 'a', 13, 'insert', '{}')",
        {("idle-pending", 13)},
    ),
    "an endless ticket": (
        _TICKET.format(epoch=10, at=12, ready_at="infinity"),
        {("ticket-endless", 13)},
    ),
    "a pause that ended and woke nobody": (
        (
            "UPDATE inturn.key_cursor SET ready_at = NULL, paused_at = now(), paused_until = now()"
            " WHERE key = 'b'"
        ),
        {("idle-pending", 1), ("ticket-endless", 1)},
    ),
    "held and ready": (
        "UPDATE inturn.key_cursor SET held_at = now() WHERE key = 'b'",
        {("held-and-ready", 1)},
    ),
    "paused and ready": (
        "UPDATE inturn.key_cursor SET paused_at = now() WHERE key = 'b'",
        {("paused-and-ready", 1)},
    ),
    "an idle key whose next command wakes nobody": (
        f"UPDATE inturn.turn SET drained = false WHERE {_OF_A} AND epoch = 10",
        {("idle-undrained", 12)},
    ),
    # The operators.
    "a skip that no action tells of": (
        f"DELETE FROM inturn.operator_action WHERE {_OF_A} AND action = 'skip'",
        {("skip-without-action", 4)},
    ),
    "a cancel-rest that no action tells of": (
        f"DELETE FROM inturn.operator_action WHERE {_OF_A} AND action = 'cancel-rest'",
        {("skip-without-action", 9)},
    ),
    "an action that took less than skip has": (
        (
            "UPDATE inturn.operator_action SET after = jsonb_set(after, '{applied_seq}', '9')"
            f" WHERE {_OF_A} AND action = 'cancel-rest'"
        ),
        {("skip-without-action", 9), ("action-without-skip", 9)},
    ),
    "an action of free text": (
        f"UPDATE inturn.operator_action SET after = '\"x\"' WHERE {_OF_A} AND action = 'skip'",
        {("skip-without-action", 4), ("action-without-skip", 4)},
    ),
    "an action of nothing": (
        "INSERT INTO inturn.operator_action (topic, key, id, seq, action) SELECT 'orders', 'b', 9, 1, 'skip'",
        {("action-without-skip", 1)},
    ),
    "a replay that is not in the log": (
        f"UPDATE inturn.command_log SET idempotency_key = NULL WHERE {_OF_A} AND seq = 11",
        {("replay-missing", 4)},
    ),
    "a replay that no action tells of": (
        f"DELETE FROM inturn.operator_action WHERE {_OF_A} AND action = 'replay'",
        {("replay-without-action", 11)},
    ),
    "an amended command that is otherwise": (
        f"UPDATE inturn.command_log SET payload = '{{}}' WHERE {_OF_A} AND seq = 11",
        {("amend-missing", 11)},
    ),
    # Of the other kinds of topic and applier.
    "a key of a topic that numbers, as if its callers did": (
        f"UPDATE inturn.key_sequence SET given = true WHERE {_OF_A}",
        {("numbering-mixed", None)},
    ),
    "a wait where nobody else numbers": (
        "UPDATE inturn.key_cursor SET waiting_at = now() WHERE key = 'b'",
        {("waiting-without-gap", 1)},
    ),
    # Whole topics.
    "a topic lost": ("DELETE FROM inturn.topic", {("topic-missing", None)}),
}

_OF_G = "topic = 'given' AND key = 'g'"
#: As PLANTS, of the keys that `numbered` describes: (key, SQL, what is found).
NUMBERED: dict[str, tuple[str, str, set[tuple[str, int | None]]]] = {
    "an applied command lost": (
        "g",
        f"DELETE FROM inturn.command_log WHERE {_OF_G} AND seq = 6",
        {("seq-missing", 6)},
    ),
    "the first commands lost": (
        "g",
        f"DELETE FROM inturn.command_log WHERE {_OF_G} AND seq < 7",
        {("seq-missing", 5)},
    ),
    "a gap's entry lost": (
        "g",
        f"DELETE FROM inturn.skip WHERE {_OF_G} AND seq = 7",
        {("seq-missing", 7), ("passed-unaccounted", 7), ("action-without-skip", 7)},
    ),
    "a filled gap that no action tells of": (
        "g",
        f"DELETE FROM inturn.operator_action WHERE {_OF_G} AND action = 'fill-gap'",
        {("skip-without-action", 7)},
    ),
    "a filled gap that is none": (
        "g",
        f"UPDATE inturn.command_log SET seq = 7 WHERE {_OF_G} AND seq = 6",
        {("gap-not-empty", 7), ("seq-missing", 6)},
    ),
    "a number below the first": (
        "g",
        (
            f"INSERT INTO inturn.command_log SELECT topic, key, 4, name, '{{}}' FROM inturn.command_log"
            f" WHERE {_OF_G} AND seq = 5"
        ),
        {("seq-below-first", 4)},
    ),
    "a number given twice": (
        "g",
        f"INSERT INTO inturn.command_log SELECT * FROM inturn.command_log WHERE {_OF_G} AND seq = 15",
        {("seq-repeated", 15)},
    ),
    "a skipped command lost": (
        "s",
        "DELETE FROM inturn.command_log WHERE key = 's' AND seq = 5",
        {("seq-missing", 5)},
    ),
    "a command that failed, and was cancelled with the rest, lost": (
        "c",
        "DELETE FROM inturn.command_log WHERE key = 'c' AND seq = 5",
        {("seq-missing", 5)},
    ),
    "the cursor before the first": (
        "w",
        "UPDATE inturn.key_cursor SET applied_seq = 3 WHERE key = 'w'",
        {("cursor-outside", 3), ("ticket-behind", 3)},
    ),
    "where its numbers begin lost": (
        "n",
        "DELETE FROM inturn.turn WHERE key = 'n'; DELETE FROM inturn.ticket WHERE key = 'n'",
        {("idle-undrained", 4), ("idle-pending", 5)},
    ),
    "a key that its callers number, as if it numbered": (
        "g",
        f"UPDATE inturn.key_sequence SET given = false WHERE {_OF_G}",
        {("numbering-mixed", None)},
    ),
    "a wait for what is there": (
        "g",
        (
            f"INSERT INTO inturn.command_log SELECT topic, key, 14, name, '{{}}' FROM inturn.command_log"
            f" WHERE {_OF_G} AND seq = 15"
        ),
        {("waiting-without-gap", 14)},
    ),
    "a wait for nothing": (
        "g",
        f"DELETE FROM inturn.command_log WHERE {_OF_G} AND seq = 15",
        {("waiting-without-gap", 14)},
    ),
    "a gap that nobody noticed": (
        "g",
        f"UPDATE inturn.key_cursor SET waiting_at = NULL WHERE {_OF_G}",
        {("idle-pending", 14), ("ticket-endless", 14)},
    ),
    "a lease of nobody": (
        "l",
        "UPDATE inturn.key_mark SET claimed_by = NULL WHERE key = 'l'",
        {("lease-malformed", 6)},
    ),
    "a lease on a held key": (
        "l",
        "UPDATE inturn.key_cursor SET held_at = now(), ready_at = NULL WHERE key = 'l'",
        {("lease-malformed", 6), ("lease-endless", 6)},
    ),
    "a lease that others may take while it runs": (
        "l",
        "UPDATE inturn.key_cursor SET ready_at = lease_until - interval '1 s' WHERE key = 'l'",
        {("lease-unguarded", 6)},
    ),
    "a lease that never ends": (
        "l",
        "UPDATE inturn.key_cursor SET ready_at = NULL WHERE key = 'l'",
        {("lease-endless", 6), ("idle-pending", 6)},
    ),
    "the turn of a running lease lost": (
        "l",
        "DELETE FROM inturn.turn WHERE key = 'l'",
        {("passed-unaccounted", 5)},
    ),
    "the turn of a running lease behind its cursor": (
        "l",
        "UPDATE inturn.turn SET to_seq = 6 WHERE key = 'l' AND epoch = 1",
        {("passed-beyond-cursor", 6)},
    ),
    "a turn of an epoch that is to come": (
        "l",
        "UPDATE inturn.turn SET epoch = 2 WHERE key = 'l' AND epoch = 1",
        {("epoch-ahead", None), ("ticket-behind", 5)},
    ),
}

# Written straight into the tables, as the protocol leaves them.
_LOAD = """
WITH given (prefix, keys, commands) AS (VALUES (%s, %s, %s)
), command AS (
    INSERT INTO inturn.command_log (topic, key, seq, name, payload)
    SELECT 'orders', prefix || k, s, 'update', jsonb_build_object('amount', s)
    FROM given, generate_series(1, keys) k, generate_series(1, commands) s
), sequence AS (
    INSERT INTO inturn.key_sequence (topic, key)
    SELECT 'orders', prefix || k FROM given, generate_series(1, keys) k
)
INSERT INTO inturn.turn (
    topic, key, epoch, from_seq, to_seq, applied_seq, drained, outcome, applier, started_at)
SELECT 'orders', prefix || k, s, s, s, s, s = commands, 'applied', 'me', now()
FROM given, generate_series(1, keys) k, generate_series(1, commands) s
"""


@pytest.fixture
def history(witness: Database) -> Database:
    make_history(witness)
    assert verified(witness) == []
    return witness


def verified(database: Database, commands_a_slice: int = 50_000) -> list[tuple[Any, ...]]:
    """Verify everything, slice by slice, as the command does."""
    found = []
    for (topic,) in database.execute("SELECT inturn.verify_topics()"):
        from_key = ""
        while from_key is not None:
            to_key, next_key = database.execute(
                "SELECT to_key, next_key FROM inturn.verify_slice(%s, %s, %s)",
                [topic, from_key, commands_a_slice],
            )[0]
            found += database.execute("SELECT * FROM inturn.verify(%s, %s, %s)", [topic, from_key, to_key])
            from_key = next_key
    return found


@pytest.mark.parametrize("planted", PLANTS)
def test_a_planted_violation_is_found_and_called_by_its_name(history: Database, planted: str) -> None:
    plant, expected = PLANTS[planted]
    history.execute(_NO_CONSTRAINTS)
    history.execute(plant)
    found = verified(history)
    assert {(violation, seq) for violation, _, _, seq, *_ in found} == expected
    key = "" if planted == "a topic lost" else "b" if "'b'" in plant else "a"
    assert {each for _, _, each, *_ in found} == {key}
    for _, topic, _, _, says, rows in found:
        assert topic == "orders"
        assert says
        assert rows or planted == "a topic lost"
        assert all("payload" not in row for row in rows)


@pytest.fixture
def numbered(history: Database) -> Database:
    """The history, and topic `given`, whose callers number from 5 on.

    g: 5 and 6 applied, 7 filled, 8 applied, 9 to 12 cancelled of which only 12 was there, 13 applied;
    waits for 14, 15 is there. s: 5 failed and was skipped, 6 applied. c: 5 failed and was cancelled
    with 7. w: waits for 5. l: leased, 5 done, 6 in hand. r: its first lease was given back. n: 5 is ready.
    """

    def put(key: str, *seqs: int, name: str = "insert") -> None:
        for seq in seqs:
            history.execute("SELECT inturn.append('given', %s, %s, seq => %s)", [key, name, seq])

    def apply() -> None:
        history.execute("CALL inturn.apply()")

    history.execute(
        "SELECT inturn.create_topic('given', 'sql:app.apply_order', numbering => 'given', first_seq => 5,"
        " max_attempts => 1)"
    )
    put("g", 12, 5, 8, 6)
    apply()
    history.execute("SELECT inturn.fill_gap('given', 'g', 7, 'lost')")
    apply()
    history.execute("SELECT inturn.cancel_rest('given', 'g', 'closed')")
    put("g", 13, 15)
    put("s", 5, name="fail")
    put("s", 6)
    apply()
    history.execute("SELECT inturn.skip('given', 's', 5, 'wrong')")
    apply()
    history.execute("SELECT inturn.set_topic('given', on_exhausted => 'cancel-rest')")
    put("c", 5, name="fail")
    put("c", 7)
    put("w", 6)
    apply()
    claim = (
        "SELECT key FROM inturn.claim(topics => '{given}', max_keys => 1, lease => '1 hour', applier => NULL)"
    )
    put("r", 5)
    assert history.execute(claim) == [("r",)]
    history.execute("SELECT inturn.release('given', 'r', 1)")
    assert history.execute(claim) == [("r",)]
    history.execute("SELECT inturn.advance('given', 'r', 2, 5)")
    history.execute("SELECT inturn.release('given', 'r', 2)")
    put("l", 5, 6)
    assert history.execute(claim) == [("l",), ("l",)]
    history.execute("SELECT inturn.advance('given', 'l', 1, 5)")
    put("n", 5)
    states = "SELECT key, inturn.key_state(c), applied_seq FROM inturn.key_cursor c WHERE topic = 'given'"
    assert sorted(history.execute(states)) == [
        ("c", "idle", 7),
        ("g", "waiting", 13),
        ("l", "leased", 5),
        ("n", "ready", 4),
        ("r", "idle", 5),
        ("s", "idle", 6),
        ("w", "waiting", 4),
    ]
    assert verified(history) == []
    return history


@pytest.mark.parametrize("planted", NUMBERED)
def test_what_is_planted_among_given_numbers_and_leases_is_found(numbered: Database, planted: str) -> None:
    key, plant, expected = NUMBERED[planted]
    numbered.execute(_NO_CONSTRAINTS)
    numbered.execute(plant)
    found = verified(numbered)
    assert {(violation, seq) for violation, _, _, seq, *_ in found} == expected
    for _, topic, of_key, _, says, rows in found:
        assert (topic, of_key) == ("given", key)
        assert says
        assert rows


def leaser(database: Database, seed: int) -> Callable[[], None]:
    """An applier by lease that fails, forgets its leases, and comes late."""
    connection, dice = database.connect(), random.Random(seed)

    def work() -> None:
        rows = connection.execute(
            "SELECT key, epoch, seq FROM inturn.claim('{given}'::text[], 2, NULL, NULL)"
        ).fetchall()
        try:
            for key, epoch, seq in rows:
                what = dice.random()
                if what < 0.1:
                    connection.execute("SELECT inturn.fail('given', %s, %s, %s, 'no')", [key, epoch, seq])
                elif what < 0.9:
                    connection.execute("SELECT inturn.advance('given', %s, %s, %s)", [key, epoch, seq])
                if what > 0.8:
                    connection.execute("SELECT inturn.release('given', %s, %s)", [key, epoch])
        except errors.Error as error:
            # Fenced off; or what came after a command that failed or was not done.
            if error.sqlstate not in {"IT030", "IT032"}:
                raise

    return work


def filler(database: Database) -> Callable[[], None]:
    """An operator who fills whatever gap there is."""
    connection = database.connect(options="-c lock_timeout=100ms")

    def fill() -> None:
        for action in ("fill_gap(topic, key, applied_seq + 1, 'test')", "retry(topic, key)"):
            try:
                connection.execute(f"SELECT inturn.{action} FROM inturn.key_cursor ORDER BY random() LIMIT 1")
            except errors.Error as error:
                if error.sqlstate not in {"IT041", "IT042"}:
                    raise

    return fill


def call_in_any_order(database: Database, seed: int) -> None:
    """Append two thirds of the numbers 1 to 60 of five keys."""
    connection = database.connect()
    numbers = [(key, seq) for key in "abcde" for seq in range(1, 61)]
    for key, seq in random.Random(seed).sample(numbers, len(numbers) * 2 // 3):
        try:
            connection.execute("SELECT inturn.append('given', %s, 'insert', seq => %s)", [key, seq])
        except errors.Error as error:
            if error.sqlstate != "IT052":  # an operator was faster
                raise


def test_nothing_is_found_beside_leases_and_callers_that_number(witness: Database) -> None:
    witness.execute(
        "SELECT inturn.create_topic('given', 'sql:app.apply_order', numbering => 'given', max_attempts => 3,"
        " lease => '30 ms', backoff_base => '1 ms', backoff_cap => '1 ms', gap_timeout => '20 ms',"
        " on_exhausted => 'cancel-rest')"
    )
    looks = []

    def look() -> None:
        found = verified(witness, 100)
        assert found == [], found
        looks.append(1)

    with ExitStack() as stack:
        stack.enter_context(repeating(look))
        stack.enter_context(repeating(filler(witness)))
        for seed in range(2):
            stack.enter_context(repeating(leaser(witness, seed)))
        stack.enter_context(repeating(lambda: witness.execute("CALL inturn.apply(max_seconds => 0.05)")))
        for seed in range(3):
            call_in_any_order(witness, seed)
    assert len(looks) > 2
    assert verified(witness) == []
    turns = dict(witness.execute("SELECT outcome, count(*) FROM inturn.turn GROUP BY 1"))
    assert turns.keys() >= {"applied", "retrying"}, turns
    assert witness.value("SELECT count(*) FROM inturn.operator_action WHERE action = 'fill-gap'") > 0


def test_the_rows_of_a_violation_are_those_that_show_it(history: Database) -> None:
    history.execute(f"UPDATE inturn.turn SET from_seq = 3 WHERE {_OF_A} AND epoch = 2")
    ((violation, topic, key, seq, says, rows),) = verified(history)
    assert (violation, topic, key, seq) == ("passed-twice", "orders", "a", 3)
    assert says == "3 was applied or passed over twice, the second time in epoch 2"
    turns = [(row["epoch"], row["from_seq"], row["to_seq"]) for row in rows if row["table"] == "turn"]
    assert turns == [(1, 1, 3), (2, 3, 3)]
    assert {row["table"] for row in rows} == {"turn"}


def test_a_history_of_turns_alone_is_nothing_to_complain_of(history: Database) -> None:
    for table in ("skip", "operator_action", "turn", "ticket", "key_mark", "key_sequence", "command_log"):
        history.execute(f"DELETE FROM inturn.{table}")
    history.execute("SELECT inturn.append('orders', 'x', 'insert')")
    history.execute("CALL inturn.apply()")
    assert verified(history) == []


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
    history.execute(f"UPDATE inturn.turn SET {times} WHERE {_OF_A} AND epoch = 2")
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


@pytest.mark.parametrize(
    "stray",
    [
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
    ],
)
def test_a_key_beyond_the_last_that_one_table_alone_has_is_found(history: Database, stray: str) -> None:
    history.execute(f"INSERT INTO inturn.{stray}")
    assert {row[2] for row in history.execute("SELECT * FROM inturn.verify('orders')")} == {"z"}


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
        history.execute(_LOAD, [prefix, 10_000, 2])
    for table in ("command_log", "key_sequence", "ticket", "key_mark", "turn", "skip", "operator_action"):
        if statistics is None:
            history.execute(f"ANALYZE inturn.{table}")
        else:
            history.administer(
                "UPDATE pg_class SET relpages = %s, reltuples = %s WHERE oid = %s::regclass",
                [*statistics, f"inturn.{table}"],
            )
    connection = history.connect()
    # The slice with all that operators did: nothing of it may be looked for in the whole topic.
    read = cost(connection, "SELECT * FROM inturn.verify('orders', 'a', 'e')")
    read += cost(connection, "SELECT * FROM inturn.verify_slice('orders', 'a', 16)")
    assert read < 700, "a slice of 5 keys is verified at the cost of all"


# -- beside who is at work


_ACTIONS = (
    "SELECT inturn.skip(topic, key, applied_seq + 1, 'test')",
    "SELECT inturn.cancel_rest(topic, key, 'test')",
    "SELECT inturn.retry(topic, key)",
    "SELECT inturn.pause(topic, key)",
    "SELECT inturn.pause(topic, key, until => clock_timestamp() + interval '20 ms')",
    "SELECT inturn.resume(topic, key)",
    "SELECT inturn.replay(topic, key, applied_seq, 'test')",
    "SELECT inturn.amend(topic, key, applied_seq + 1, 'test', name => 'insert')",
)


@contextmanager
def repeating(work: Callable[[], object]) -> Iterator[None]:
    """Do the work again and again in a thread while the block runs; raise what it raised."""
    over = threading.Event()
    raised: list[BaseException] = []

    def run() -> None:
        try:
            while not over.is_set():
                work()
        except BaseException as error:  # noqa: BLE001 - raised again below
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if raised:
        raise raised[0]


def operator(database: Database) -> Callable[[], None]:
    """An operator who does something to some key, whether it makes sense or not."""
    connection = database.connect(options="-c lock_timeout=1s")
    turn = iter(range(10**9))

    def act() -> None:
        action = _ACTIONS[next(turn) % len(_ACTIONS)]
        try:
            connection.execute(f"{action} FROM inturn.key_cursor ORDER BY random() LIMIT 1")
        except errors.Error as error:
            # Refused; or busy; or the replay and a caller of two keys waited for one another.
            if error.sqlstate not in {"IT041", "IT042", "40P01"}:
                raise

    return act


def test_nothing_is_found_beside_callers_appliers_and_operators_at_work(witness: Database) -> None:
    Oracle(witness)
    crowd = Crowd(witness)
    witness.execute("UPDATE inturn.topic SET max_attempts = 2, on_exhausted = 'skip'")
    witness.execute(
        "CREATE OR REPLACE FUNCTION app.append(topic text, key text, name text DEFAULT 'insert')"
        " RETURNS void LANGUAGE sql AS $$ SELECT inturn.append(topic, key,"
        " CASE WHEN random() < 0.1 THEN 'fail' ELSE name END) $$"
    )
    looks = []

    def look() -> None:
        found = verified(witness, 500)
        assert found == [], found
        looks.append(1)

    with ExitStack() as stack:
        stack.enter_context(repeating(look))
        for _ in range(2):
            stack.enter_context(repeating(operator(witness)))
        stack.enter_context(crowd.applying(2))
        crowd.call(4, "'orders', 150, 20")
    done = witness.execute(
        "SELECT action, count(*) FROM inturn.operator_action WHERE action <> 'create' GROUP BY 1"
    )
    assert {action for action, _ in done} == {
        "skip",
        "cancel-rest",
        "retry",
        "pause",
        "resume",
        "replay",
        "amend",
    }
    assert len(looks) > 2
    assert verified(witness) == []


def test_a_key_paused_for_good_and_then_until_a_time_is_found_well(witness: Database) -> None:
    """It was not drained when it was paused, and had nothing pending: a lost wake-up, as verify found out."""
    witness.execute("SELECT inturn.append('orders', 'x', 'insert')")
    caller = witness.session()
    caller.execute("SELECT inturn.append('orders', 'x', 'insert')")
    applier = witness.session()
    applier.execute("SELECT inturn.claim('orders')")
    applier.execute("SELECT inturn.finish('orders', '{x}', '{1}', '{1}', '{1}', 'me')")
    applier.commit()
    caller.rollback()
    witness.execute("SELECT inturn.pause('orders', 'x')")
    witness.execute("SELECT inturn.pause('orders', 'x', until => '2999-01-01')")
    witness.execute("SELECT inturn.append('orders', 'x', 'insert')")
    assert verified(witness) == []


# -- the command


def test_the_command_counts_what_it_read_and_finds_nothing(history: Database) -> None:
    code, out, err = run_inturn(history.dsn, "verify")
    assert (code, err) == (0, "")
    assert re.fullmatch(r"verified 5 keys, 16 commands, 8 turns in [\d.]+ s: no violation\n", out)
    code, out, _ = run_inturn(history.dsn, "verify", "--topic", "orders", "--key", "a", "--json")
    assert code == 0
    assert {k: v for k, v in json.loads(out).items() if k != "seconds"} == {
        "keys": 1,
        "commands": 12,
        "turns": 6,
        "found": 0,
        "violations": [],
        "warnings": [],
    }


@pytest.mark.parametrize(
    "planted", ["a number lost", "a number applied twice", "an operator's skip lost", "a lost wake-up"]
)
def test_the_command_prints_each_violation_with_its_rows_and_exits_with_8(
    history: Database, planted: str
) -> None:
    plant, expected = PLANTS[planted]
    history.execute(plant)
    code, out, err = run_inturn(history.dsn, "verify")
    assert (code, err) == (8, "")
    for violation, _ in expected:
        assert re.search(rf"^{violation}: topic orders, key [ab]: .+\n  \w+ +\w+=", out, re.MULTILINE)
    assert f"{len(expected)} violation" in out.splitlines()[-1]
    key = "b" if "'b'" in plant else "a"
    code, out, _ = run_inturn(history.dsn, "verify", "--key", key, "--json")
    assert code == 8
    document = json.loads(out)
    assert {(each["violation"], each["seq"]) for each in document["violations"]} == expected
    assert run_inturn(history.dsn, "verify", "--key", "e")[0] == 0


def test_the_command_prints_so_many_and_counts_all(history: Database) -> None:
    history.execute("UPDATE inturn.key_sequence SET given = true")
    code, out, _ = run_inturn(history.dsn, "verify", "--limit", "2")
    assert code == 8
    assert out.count("numbering-mixed: ") == 2
    assert "... and 3 more: see them with --limit" in out
    assert out.endswith(": 5 violations\n")


def test_what_the_command_prints_of_a_hostile_key_is_one_line_and_can_be_given_back(
    history: Database,
) -> None:
    evil = "evil\x1b[2J\u202e\n'key"
    history.execute("SELECT inturn.append('orders', %s, 'insert')", [evil])
    history.execute(
        "UPDATE inturn.key_cursor SET ready_at = NULL, last_error = E'\\x1b' WHERE key = %s", [evil]
    )
    code, out, _ = run_inturn(history.dsn, "verify")
    assert code == 8
    assert all(line.isprintable() for line in out.splitlines())
    printed = re.search(r"key (\S.*\S): it is idle", out)
    assert printed is not None
    (word,) = shlex.split(printed[1])
    code, out, _ = run_inturn(history.dsn, "verify", "--key", word)
    assert (code, "verified 1 key, 1 command, 0 turns" in out) == (8, True)


def test_a_key_or_topic_that_is_not_there_is_one_line(history: Database) -> None:
    for arguments in (("--key", "nosuch"), ("--topic", "nosuch"), ("--topic", "nosuch", "--key", "a")):
        code, out, err = run_inturn(history.dsn, "verify", *arguments)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "nosuch" in err


def test_the_command_runs_where_nothing_may_be_written(history: Database) -> None:
    assert run_inturn(history.dsn + " options='-c default_transaction_read_only=on'", "verify")[0] == 0


def test_a_connection_lost_in_the_middle_is_one_line(history: Database) -> None:
    locker = history.session()
    locker.execute("LOCK TABLE inturn.skip IN ACCESS EXCLUSIVE MODE")
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
    with InturnProcess(history.dsn, "verify") as process:
        until(lambda: history.execute(kill, [locker.pid]), "the verify blocked")
        assert process.exit_code() == 4
        assert re.fullmatch(r"inturn: the connection to the database was lost: [^\n]+\n", process.err)
        assert process.out == ""


def test_a_terminal_sees_how_far_it_is(history: Database) -> None:
    lines = on_terminal(history.dsn, "verify")
    assert "verifying" in "".join(lines[:-1])
    assert re.search(r"verified 5 keys, .*: no violation$", lines[-1])


# -- much of it


def _verify_many(database: Database, keys: int, commands: int) -> None:
    database.execute(_LOAD, ["order-", keys, commands])
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


@pytest.mark.parametrize(("keys", "commands"), [(20_000, 5), (1, 100_000)])
def test_a_hundred_thousand_commands(witness: Database, keys: int, commands: int) -> None:
    _verify_many(witness, keys, commands)


@pytest.mark.soak
@pytest.mark.parametrize(("keys", "commands"), [(200_000, 5), (1, 1_000_000)])
def test_a_million_commands(witness: Database, keys: int, commands: int) -> None:
    _verify_many(witness, keys, commands)
