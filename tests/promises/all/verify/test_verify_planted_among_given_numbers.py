"""Every kind of violation among given numbers, gaps and leases, planted by hand, is found by `verify`."""

from __future__ import annotations

import pytest
from support.database import Database
from support.roles import OWNER
from support.verifying import NO_CONSTRAINTS, undone, verified

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


def test_what_is_planted_among_given_numbers_and_leases_is_found(numbered: Database) -> None:
    session = numbered.session(user=OWNER)
    session.execute(NO_CONSTRAINTS)
    for planted, (key, plant, expected) in NUMBERED.items():
        with undone(session):
            session.execute(plant)
            found = verified(session)
        assert {(violation, seq) for violation, _, _, seq, *_ in found} == expected, planted
        for _, topic, of_key, _, says, rows in found:
            assert (topic, of_key) == ("given", key), planted
            assert says, planted
            assert rows, planted
