"""`verify` finds nothing beside callers, appliers and operators at work."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from psycopg import errors
from support.crowd import Crowd
from support.database import Database, until
from support.oracle import Oracle
from support.roles import OWNER
from support.verifying import verified


def leaser(database: Database, seed: int) -> Callable[[], None]:
    """An applier by lease that fails, forgets its leases, and comes late."""
    connection, dice = database.connect(user=OWNER), random.Random(seed)

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
    connection = database.connect(user=OWNER, options="-c lock_timeout=100ms")

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
    connection = database.connect(user=OWNER)
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
        until(lambda: len(looks) > 2, "some looks")
    assert verified(witness) == []
    turns = dict(witness.execute("SELECT outcome, count(*) FROM inturn.turn GROUP BY 1"))
    assert turns.keys() >= {"applied", "retrying"}, turns
    assert witness.value("SELECT count(*) FROM inturn.operator_action WHERE action = 'fill-gap'") > 0


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
def repeating(work: Callable[[], object], pause: float = 0.002) -> Iterator[None]:
    """Do the work again and again in a thread while the block runs; raise what it raised.

    pause: how many seconds it rests each time, so that nobody has the processor for himself.
    """
    over = threading.Event()
    raised: list[BaseException] = []

    def run() -> None:
        try:
            while not over.wait(pause):
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
    connection = database.connect(user=OWNER, options="-c lock_timeout=1s")
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


def _done(database: Database) -> set[str]:
    found = database.execute("SELECT DISTINCT action FROM inturn.operator_action WHERE action <> 'create'")
    return {action for (action,) in found}


def test_nothing_is_found_beside_callers_appliers_and_operators_at_work(witness: Database) -> None:
    Oracle(witness)
    crowd = Crowd(witness)
    every = {"skip", "cancel-rest", "retry", "pause", "resume", "replay", "amend"}
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
        for _ in range(10):  # chance may leave an action out
            crowd.call(4, "'orders', 150, 20")
            if len(looks) > 2 and _done(witness) == every:
                break
    assert _done(witness) == every
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
