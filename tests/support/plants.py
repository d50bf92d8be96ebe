"""Violations to plant by hand into `support.history`, and what `verify` must find of each."""

from __future__ import annotations

from support.verifying import OF_A

_COPY_TURN = (
    "INSERT INTO inturn.turn (topic, key, epoch, from_seq, to_seq, applied_seq, drained, outcome, applier,"
    " started_at, finished_at) SELECT topic, {key}, {epoch}, {lo}, {hi}, {at}, true, '{outcome}', applier,"
    f" started_at, finished_at FROM inturn.turn WHERE {OF_A} AND epoch = 10"
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
    "a number lost": (f"DELETE FROM inturn.command_log WHERE {OF_A} AND seq = 2", {("seq-missing", 2)}),
    "the first numbers lost": (
        f"DELETE FROM inturn.command_log WHERE {OF_A} AND seq < 3",
        {("seq-missing", 1)},
    ),
    "a number given twice": (
        f"INSERT INTO inturn.command_log SELECT * FROM inturn.command_log WHERE {OF_A} AND seq = 3",
        {("seq-repeated", 3)},
    ),
    "a number twice and the next one lost": (
        f"UPDATE inturn.command_log SET seq = 2 WHERE {OF_A} AND seq = 3",
        {("seq-repeated", 2), ("seq-missing", 3)},
    ),
    "a number below 1": (
        (
            "INSERT INTO inturn.command_log SELECT topic, key, 0, name, payload FROM inturn.command_log"
            f" WHERE {OF_A} AND seq = 1"
        ),
        {("seq-below-one", 0)},
    ),
    "a row in key_sequence lost": (
        f"DELETE FROM inturn.key_sequence WHERE {OF_A}",
        {("sequence-row-missing", None)},
    ),
    "a row in key_sequence twice": (
        f"INSERT INTO inturn.key_sequence SELECT * FROM inturn.key_sequence WHERE {OF_A}",
        {("sequence-row-repeated", None)},
    ),
    "a last turn from which the next number would be too high": (
        f"UPDATE inturn.turn SET applied_seq = 13 WHERE {OF_A} AND epoch = 10",
        {("cursor-outside", 13), ("passed-unaccounted", 13)},
    ),
    # P2
    "an epoch used by two turns": (
        f"UPDATE inturn.turn SET epoch = 1 WHERE {OF_A} AND epoch = 2",
        {("epoch-repeated", 4)},
    ),
    "an epoch used by a turn and an operator": (
        f"UPDATE inturn.turn SET epoch = 3 WHERE {OF_A} AND epoch = 2",
        {("epoch-repeated", 4)},
    ),
    "an epoch used by a turn, and where the key went idle": (
        _COPY_TURN.format(key="key", epoch=4, lo=6, hi=5, at=5, outcome="idle"),
        {("epoch-repeated", 6)},
    ),
    "an epoch below 1": (
        (
            "INSERT INTO inturn.turn SELECT topic, key, 0, 1, 0, 0, false, 'retrying', applier, started_at,"
            f" finished_at, 'x' FROM inturn.turn WHERE {OF_A} AND epoch = 1"
        ),
        {("epoch-below-one", 1)},
    ),
    "epochs against the order of seqs": (
        f"UPDATE inturn.turn SET epoch = 14 - epoch, applied_seq = 12 WHERE {OF_A} AND epoch IN (4, 10)",
        {("epoch-order", 6), ("epoch-order", 5)},
    ),
    "a turn that ended before the one before it": (
        (
            f"UPDATE inturn.turn SET started_at = started_at - interval '1 day',"
            f" finished_at = finished_at - interval '1 day' WHERE {OF_A} AND epoch = 2"
        ),
        {("turn-order", 4)},
    ),
    "a turn that ended before it began": (
        f"UPDATE inturn.turn SET started_at = finished_at + interval '1 day' WHERE {OF_A} AND epoch = 2",
        {("turn-malformed", 4)},
    ),
    "an applied turn with an error": (
        f"UPDATE inturn.turn SET error = 'x' WHERE {OF_A} AND epoch = 4",
        {("turn-malformed", 5)},
    ),
    "a failed turn without an error": (
        f"UPDATE inturn.turn SET error = NULL WHERE {OF_A} AND epoch = 1",
        {("turn-malformed", 1)},
    ),
    "an outcome that is none": (
        f"UPDATE inturn.turn SET outcome = 'vanished' WHERE {OF_A} AND epoch = 1",
        {("turn-malformed", 1)},
    ),
    "an applied turn that applied nothing": (
        f"UPDATE inturn.turn SET outcome = 'applied', error = NULL WHERE {OF_A} AND epoch = 2",
        {("turn-malformed", 4)},
    ),
    "where the key went idle, as if it had applied something": (
        f"UPDATE inturn.turn SET from_seq = 6 WHERE {OF_A} AND epoch = 6",
        {("turn-malformed", 6)},
    ),
    "where the key went idle, with an error": (
        f"UPDATE inturn.turn SET error = 'x' WHERE {OF_A} AND epoch = 6",
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
        f"UPDATE inturn.turn SET to_seq = 13, applied_seq = 13 WHERE {OF_A} AND epoch = 10",
        {("cursor-outside", 13)},
    ),
    "the cursor below 0": (
        "UPDATE inturn.key_cursor SET applied_seq = -1 WHERE key = 'b'",
        {("cursor-outside", -1)},
    ),
    "a turn that applied less than it says elsewhere": (
        f"UPDATE inturn.turn SET to_seq = 2 WHERE {OF_A} AND epoch = 1",
        {("passed-unaccounted", 3)},
    ),
    "the last turn lost": (
        f"DELETE FROM inturn.turn WHERE {OF_A} AND epoch = 10",
        {("idle-pending", 11)},
    ),
    "the last turn lost of a key that is awake": (
        _TICKET.format(epoch=10, at=12, ready_at="now")
        + f"; DELETE FROM inturn.turn WHERE {OF_A} AND epoch = 10",
        {("passed-unaccounted", 11)},
    ),
    "a turn taken for none": (
        f"UPDATE inturn.turn SET outcome = 'idle' WHERE {OF_A} AND epoch = 4",
        {("turn-malformed", 5), ("passed-unaccounted", 5)},
    ),
    "the first turn lost": (
        f"DELETE FROM inturn.turn WHERE {OF_A} AND epoch = 1",
        {("passed-unaccounted", 1)},
    ),
    "an operator's skip lost": (
        f"DELETE FROM inturn.skip WHERE {OF_A} AND seq = 4",
        {("passed-unaccounted", 4), ("action-without-skip", 4)},
    ),
    "a number applied twice": (
        f"UPDATE inturn.turn SET from_seq = 3 WHERE {OF_A} AND epoch = 2",
        {("passed-twice", 3)},
    ),
    "a number skipped and applied": (
        f"UPDATE inturn.turn SET to_seq = 4 WHERE {OF_A} AND epoch = 1",
        {("passed-twice", 4)},
    ),
    "a number skipped twice": (
        f"INSERT INTO inturn.skip SELECT * FROM inturn.skip WHERE {OF_A} AND seq = 4",
        {("passed-twice", 4), ("epoch-repeated", 4)},
    ),
    "a turn beyond the cursor": (
        _COPY_TURN.format(key="key", epoch=11, lo=13, hi=14, at=12, outcome="applied"),
        {("passed-beyond-cursor", 13)},
    ),
    "a skip beyond the cursor": (
        (
            "INSERT INTO inturn.skip SELECT topic, key, 13, 11, skipped_by, reason FROM inturn.skip"
            f" WHERE {OF_A} AND seq = 4"
        ),
        {("passed-beyond-cursor", 13), ("epoch-ahead", None), ("skip-without-action", 13)},
    ),
    "a skipped turn's skip lost": (
        f"DELETE FROM inturn.skip WHERE {OF_A} AND seq = 6",
        {("turn-without-skip", 6), ("passed-unaccounted", 6)},
    ),
    "a cancelled turn's last skip lost": (
        f"DELETE FROM inturn.skip WHERE {OF_A} AND seq = 8",
        {("passed-unaccounted", 8)},
    ),
    "a skip that its turn says nothing of": (
        f"UPDATE inturn.turn SET outcome = 'held' WHERE {OF_A} AND epoch = 5",
        {("skip-without-turn", 6), ("epoch-repeated", 6)},
    ),
    "a skip of no turn": (
        f"UPDATE inturn.skip SET skipped_by = 'handler' WHERE {OF_A} AND seq = 4",
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
        f"UPDATE inturn.turn SET drained = false WHERE {OF_A} AND epoch = 10",
        {("idle-undrained", 12)},
    ),
    # The operators.
    "a skip that no action tells of": (
        f"DELETE FROM inturn.operator_action WHERE {OF_A} AND action = 'skip'",
        {("skip-without-action", 4)},
    ),
    "a cancel-rest that no action tells of": (
        f"DELETE FROM inturn.operator_action WHERE {OF_A} AND action = 'cancel-rest'",
        {("skip-without-action", 9)},
    ),
    "an action that took less than skip has": (
        (
            "UPDATE inturn.operator_action SET after = jsonb_set(after, '{applied_seq}', '9')"
            f" WHERE {OF_A} AND action = 'cancel-rest'"
        ),
        {("skip-without-action", 9), ("action-without-skip", 9)},
    ),
    "an action of free text": (
        f"UPDATE inturn.operator_action SET after = '\"x\"' WHERE {OF_A} AND action = 'skip'",
        {("skip-without-action", 4), ("action-without-skip", 4)},
    ),
    "an action of nothing": (
        "INSERT INTO inturn.operator_action (topic, key, id, seq, action) SELECT 'orders', 'b', 9, 1, 'skip'",
        {("action-without-skip", 1)},
    ),
    "a replay that is not in the log": (
        f"UPDATE inturn.command_log SET idempotency_key = NULL WHERE {OF_A} AND seq = 11",
        {("replay-missing", 4)},
    ),
    "a replay that no action tells of": (
        f"DELETE FROM inturn.operator_action WHERE {OF_A} AND action = 'replay'",
        {("replay-without-action", 11)},
    ),
    "an amended command that is otherwise": (
        f"UPDATE inturn.command_log SET payload = '{{}}' WHERE {OF_A} AND seq = 11",
        {("amend-missing", 11)},
    ),
    # Of the other kinds of topic and applier.
    "a key of a topic that numbers, as if its callers did": (
        f"UPDATE inturn.key_sequence SET given = true WHERE {OF_A}",
        {("numbering-mixed", None)},
    ),
    "a wait where nobody else numbers": (
        "UPDATE inturn.key_cursor SET waiting_at = now() WHERE key = 'b'",
        {("waiting-without-gap", 1)},
    ),
    # Whole topics.
    "a topic lost": ("DELETE FROM inturn.topic", {("topic-missing", None)}),
}
