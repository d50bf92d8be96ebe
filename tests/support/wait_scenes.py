"""Waits beside whatever moves a key: what their sessions hear, and when they look again."""

from __future__ import annotations

from typing import Any

from psycopg import sql

from inturn.outbox.one_wait import CanListen, Fetch, Listen, OneWait, Sleep, Step
from support.database import Database
from support.race import Turn, append
from support.roles import APPLIER, CALLER


class Ear:
    """A session that listens for one key."""

    def __init__(self, database: Database, key: str, topic: str = "orders") -> None:
        self._database = database
        self.connection = database.connect(user=CALLER)
        self.channel: str = database.value("SELECT inturn.announce_wait(%s, %s)", [topic, key])
        self.connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self.channel)))

    def heard(self) -> int:
        """Return how often it was notified of anything until now: notifications come in their order."""
        self._database.execute("SELECT pg_notify(%s, 'now')", [self.channel])
        for times, notify in enumerate(self.connection.notifies(timeout=30)):
            if notify.payload == "now":
                return times
        raise AssertionError("the notification of the test itself did not come")


class Waiter:
    """A wait whose steps are taken one by one, up to where it would sleep."""

    def __init__(self, database: Database, key: str, seq: int | None) -> None:
        self.connection = database.connect(user=CALLER)
        self._steps = OneWait("orders", key, seq, None, None, "inturn").steps()
        self._answer: Any = None

    def go_to_sleep(self) -> Sleep:
        """Do what it asks for until it wants to sleep; return that, as if it had slept the next time."""
        while True:
            step: Step = self._steps.send(self._answer)
            self._answer = None
            match step:
                case Sleep():
                    return step
                case CanListen():
                    self._answer = True
                case Listen():
                    self.connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(step.channel)))
                case Fetch():
                    query = step.written("%({})s").encode()
                    self._answer = self.connection.execute(query, step.parameters).fetchone()

    def is_over(self) -> bool:
        """Look again; return whether that was the end."""
        try:
            self.go_to_sleep()
        except StopIteration:
            return True
        return False


def announce_between_finish_and_commit(database: Database) -> None:
    """A turn looks for announcements; a wait is announced and looks; the turn commits: nobody notifies."""
    append(database, "a")
    applier = database.session()
    (turn,) = Turn.claim(database, applier)
    turn.effects(applier, 1)
    applier.execute(*turn.finish(1))
    waiter = Waiter(database, "a", 1)
    soon = waiter.go_to_sleep().seconds
    assert soon < 1, "it would sleep, and nobody wakes it"
    assert waiter.go_to_sleep().seconds > soon, "ever less often"
    applier.commit()
    assert waiter.is_over()


def announce_between_claim_and_finish(database: Database) -> None:
    """A wait is announced and looks while a turn is under way; the turn finishes, and notifies."""
    append(database, "a")
    applier = database.session()
    (turn,) = Turn.claim(database, applier)
    ear = Ear(database, "a")
    other = Ear(database, "b")
    turn.effects(applier, 1)
    applier.execute(*turn.finish(1))
    applier.commit()
    assert ear.heard() == 1, "not notified"
    assert other.heard() == 0


def held(database: Database) -> None:
    """The key is held in the middle of a wait."""
    append(database, "a")
    ear = Ear(database, "a")
    applier = database.session()
    (turn,) = Turn.claim(database, applier)
    applier.execute("SELECT inturn.fail('orders', 'a', %s, 1, 1, 'no', 'me', 'hold')", [turn.epoch])
    applier.commit()
    assert ear.heard() == 1, "not notified"


def advanced(database: Database) -> None:
    """A command is done outside the database, and more are pending; then the last one."""
    append(database, "a")
    append(database, "a")
    ear = Ear(database, "a")
    database.execute("SELECT * FROM inturn.claim('{orders}', 1, NULL, 'me')")
    for seq in (1, 2):
        database.execute("SELECT inturn.advance('orders', 'a', 1, %s)", [seq])
        assert ear.heard() == 1, "not notified"
    database.execute("SELECT inturn.release('orders', 'a', 1)")
    assert ear.heard() == 0


def alone(database: Database) -> None:
    """A key is applied alone, as after a start, and goes idle with it."""
    append(database, "a")
    ear = Ear(database, "a")
    with database.connect(user=APPLIER) as applier:
        applier.execute("SET inturn.careful_keys = 5")
        applier.execute("CALL inturn.apply()")
    assert ear.heard() == 1, "not notified"


def skipped(database: Database) -> None:
    """An operator skips the held command; more are pending."""
    append(database, "a")
    append(database, "a")
    applier = database.session()
    (turn,) = Turn.claim(database, applier)
    applier.execute("SELECT inturn.fail('orders', 'a', %s, 1, 1, 'no', 'me', 'hold')", [turn.epoch])
    applier.commit()
    ear = Ear(database, "a")
    database.execute("SELECT inturn.skip('orders', 'a', 1, 'wrong')")
    assert ear.heard() == 1, "not notified"
    database.execute("SELECT inturn.cancel_rest('orders', 'a', 'wrong')")
    assert ear.heard() == 1, "not notified"
