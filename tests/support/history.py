"""A key's history with everything in it that appliers and operators can do, made by their own functions."""

from __future__ import annotations

from support.database import Database, until

#: Where the key `a` of the history stands at the end: its last seq, applied_seq and epoch.
LAST_SEQ, LAST_EPOCH = 12, 10


def make_history(witness: Database) -> None:
    """Fill the fixture `witness`: key a with a full history, b ready, c held, d paused, e idle.

    Of a: 1 to 3 applied, 4 failed, tried again, held and skipped by an operator, 5 applied, 6 skipped
    when its attempts ran out, 7 and 8 cancelled so, 9 and 10 cancelled by an operator, 11 the replay
    of 4, amended to something that applies, 12 applied. After 6 and after 8 a turn found nothing, and the
    key went idle: the epochs 6 and 8.
    """
    settings = "UPDATE inturn.topic SET max_attempts = %s, on_exhausted = %s"
    witness.execute(settings, [2, "hold"])
    append(witness, "a", "insert", "insert", "insert", "fail")
    until(lambda: _applied(witness, "SELECT held_at FROM inturn.key_cursor"), "held")
    witness.execute("SELECT inturn.skip('orders', 'a', 4, 'it cannot be')")
    append(witness, "a", "insert")
    witness.execute("CALL inturn.apply()")
    witness.execute(settings, [1, "skip"])
    append(witness, "a", "fail")
    witness.execute("CALL inturn.apply()")
    witness.execute(settings, [1, "cancel-rest"])
    append(witness, "a", "fail", "insert")
    witness.execute("CALL inturn.apply()")
    append(witness, "a", "insert", "insert")
    witness.execute("SELECT inturn.cancel_rest('orders', 'a', 'the customer is gone')")
    witness.execute("SELECT inturn.replay('orders', 'a', 4, 'and is back')")
    witness.execute("SELECT inturn.amend('orders', 'a', 11, 'it can be now', 'insert')")
    append(witness, "a", "insert")
    witness.execute("CALL inturn.apply()")
    append(witness, "e", "insert")
    witness.execute(settings, [1, "hold"])
    append(witness, "c", "fail")
    witness.execute("CALL inturn.apply()")
    append(witness, "b", "insert")
    append(witness, "d", "insert")
    witness.execute("SELECT inturn.pause('orders', 'd', 'not now')")
    stand = witness.execute(
        "SELECT applied_seq, epoch, (SELECT max(seq) FROM inturn.command_log l WHERE l.key = c.key)"
        " FROM inturn.key_cursor c WHERE key = 'a'"
    )
    assert stand == [(LAST_SEQ, LAST_EPOCH, LAST_SEQ)]


def append(database: Database, key: str, *names: str) -> None:
    for name in names:
        database.execute("SELECT inturn.append('orders', %s, %s, '{\"amount\": 3}')", [key, name])


def _applied(database: Database, question: str) -> object:
    database.execute("CALL inturn.apply()")
    return database.value(question)
