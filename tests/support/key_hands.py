"""One key, and the hands that do something to it: a caller's, an applier's, an operator's, and time's."""

from __future__ import annotations

from typing import Any, LiteralString

import psycopg
from psycopg import sql

from support.database import Database

Connection = psycopg.Connection[Any]

#: What is stored of a key, but for the log: nothing of it changes when an event changes nothing.
_STORED = """
    SELECT (SELECT to_jsonb(c) FROM inturn.key_cursor c WHERE topic = %(topic)s),
           (SELECT jsonb_agg(t ORDER BY epoch) FROM inturn.ticket t WHERE topic = %(topic)s),
           (SELECT jsonb_agg(m ORDER BY epoch) FROM inturn.key_mark m WHERE topic = %(topic)s),
           (SELECT jsonb_agg(u ORDER BY epoch) FROM inturn.turn u WHERE topic = %(topic)s),
           (SELECT jsonb_agg(s ORDER BY seq) FROM inturn.skip s WHERE topic = %(topic)s)
"""
#: Which rows of a key a transaction that is still open has locked; NULL for a ticket that is not there.
_LOCKED = {
    "key_sequence": "SELECT FROM inturn.key_sequence WHERE topic = %s FOR UPDATE SKIP LOCKED",
    "ticket": "SELECT FROM inturn.ticket WHERE topic = %s FOR UPDATE SKIP LOCKED",
}


class Key:
    """A key in a topic of its own.

    `hands` has the transaction of whoever acts, `other` that of a caller beside it.
    """

    def __init__(self, database: Database, hands: Connection, other: Connection, name: str, given: bool):
        self.hands = hands
        self.other = other
        self.topic = self.key = name
        self.given = given
        #: What a turn has claimed: the numbers of its commands.
        self.pending: list[int] = []
        self._database = database
        self._epoch = self._applied = 0
        database.execute(
            "SELECT inturn.create_topic(%s, 'python', numbering => %s, gap_timeout => %s::interval,"
            " lease => '1 hour')",
            [name, "given" if given else "assigned", "1 hour" if given else None],
        )

    # What is committed.

    @property
    def state(self) -> str:
        """The key's state."""
        state: str = self._database.value(
            "SELECT inturn.key_state(c) FROM inturn.key_cursor c WHERE topic = %s", [self.topic]
        )
        return state

    def stored(self) -> tuple[Any, ...]:
        """Return everything that is stored of it, but for the log."""
        return tuple(self._database.execute(_STORED, {"topic": self.topic})[0])  # type: ignore[arg-type]

    def locked(self) -> set[str]:
        """Return in which tables a transaction has locked the key's committed row."""
        return {
            table
            for table, query in _LOCKED.items()
            if self._database.value(
                f"SELECT EXISTS (SELECT FROM inturn.{table} WHERE topic = %s)", [self.topic]
            )
            and not self._database.execute(query, [self.topic])
        }

    # What the hands do, in their transaction.

    def call(self, function: LiteralString, *more: Any, **named: Any) -> Any:
        """Call a function of the schema on the key, and return what it gives."""
        marks = sql.SQL(", ").join(
            [sql.Placeholder()] * (2 + len(more))
            + [sql.SQL("{} => %s").format(sql.Identifier(name)) for name in named]
        )
        query = sql.SQL("SELECT inturn.{}({})").format(sql.Identifier(function), marks)
        return self.hands.execute(query, [self.topic, self.key, *more, *named.values()]).fetchone()[0]  # type: ignore[index]

    def lose_patience(self) -> None:
        """Wait for a moment only, if there is a lease to be waited for."""
        self.hands.execute(
            "SELECT set_config('lock_timeout', '20ms', true) FROM inturn.key_cursor"
            " WHERE topic = %s AND lease_until > now()",
            [self.topic],
        )

    def look(self, column: LiteralString) -> int:
        """Return a number of where the key stands, as the hands' transaction sees it."""
        query = sql.SQL("SELECT {} FROM inturn.key_cursor WHERE topic = %s").format(sql.Identifier(column))
        return int(self.hands.execute(query, [self.topic]).fetchone()[0])  # type: ignore[index]

    @property
    def last(self) -> int:
        """The greatest number in the log, as the hands' transaction sees it."""
        query = "SELECT coalesce(max(seq), 0) FROM inturn.command_log WHERE topic = %s"
        return int(self.hands.execute(query, [self.topic]).fetchone()[0])  # type: ignore[index]

    def append(self, seq: int | None = None, by: Connection | None = None, again: str | None = None) -> None:
        """Append a command; where callers number, under the next number unless another is given."""
        if self.given and seq is None:
            seq = self.last + 1
        (by or self.hands).execute(
            "SELECT inturn.append(%s, %s, 'insert', '{}', %s, %s)", [self.topic, self.key, again, seq]
        )

    def claim(self) -> bool:
        """Claim the key as an applier does in its transaction; return whether it was ready."""
        rows = self.hands.execute(
            "SELECT applied_seq, epoch, seq FROM inturn.claim_commands(%s)", [self.topic]
        ).fetchall()
        if rows:
            self._applied, self._epoch, _ = rows[0]
            self.pending = [seq for _, _, seq in rows if seq is not None]
        return bool(rows)

    def finish(self) -> None:
        """End the turn; what it has claimed is applied."""
        self.hands.execute(
            "INSERT INTO app.witness (key, seq, name) SELECT %s, seq, 'insert' FROM unnest(%s::bigint[]) seq",
            [self.key, self.pending],
        )
        self.hands.execute(
            "SELECT inturn.finish(%s, ARRAY[%s],"
            " ARRAY[%s::bigint], ARRAY[%s::bigint], ARRAY[%s::bigint], 'me')",
            [self.topic, self.key, self._epoch, self._applied + 1, self._applied + len(self.pending)],
        )

    def fail(self, verdict: str | None = None) -> None:
        """End the turn with its first command failed; one that has none ends as it does."""
        if self.pending:
            seq = self._applied + 1
            self.call("fail", self._epoch, seq, seq, "failed by hand", "me", verdict)
        else:
            self.finish()

    def lease(self) -> None:
        """Claim the key by lease."""
        self.hands.execute("SELECT * FROM app.claim(ARRAY[%s], 1, 'me')", [self.topic])

    def advance(self) -> bool:
        """Do the next command outside and report it by lease; return whether the lease goes on."""
        seq, epoch = self.look("applied_seq") + 1, self.look("epoch")
        self.hands.execute("SELECT app.effect(%s, %s, %s)", [self.key, seq, epoch])
        return self.call("advance", epoch, seq) is not None

    def report(self, function: LiteralString, *more: Any) -> Any:
        """Report something else by the key's latest lease."""
        return self.call(function, self.look("epoch"), *more)

    # What time does.

    def put(self, change: LiteralString, where: LiteralString = "true") -> bool:
        """Change columns of key_cursor by the tests' door, if a condition holds; return whether it did."""
        query = sql.SQL("UPDATE inturn.key_cursor SET {} WHERE topic = %s AND ({})").format(
            sql.SQL(change), sql.SQL(where)
        )
        return self.hands.execute(query, [self.topic]).rowcount > 0

    def set(self, change: LiteralString) -> None:
        """Change the topic's settings."""
        query = sql.SQL("UPDATE inturn.topic SET {} WHERE name = %s").format(sql.SQL(change))
        self.hands.execute(query, [self.topic])
