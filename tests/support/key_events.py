"""The events of docs/explanation/key-states.md, each done by hand.

The last step is left to be committed, or to be rolled back where it was refused.
"""

from __future__ import annotations

from collections.abc import Callable

from support.key_hands import Key

Deed = Callable[[Key], None]
REASON, LATER = "by hand", "2999-01-01"


def _named(*deeds: Deed) -> dict[str, Deed]:
    return {deed.__name__.strip("_").replace("_", " "): deed for deed in deeds}


# Callers.


def append(key: Key) -> None:
    key.append()


def append_again(key: Key) -> None:
    if key.given:
        key.append(key.last)
    else:
        key.append(again="first")


def append_later(key: Key) -> None:
    key.append(key.last + 2)


def append_missing(key: Key) -> None:
    key.append(key.look("applied_seq") + 1)


def append_missing_meanwhile(key: Key) -> None:
    """Somebody else has the key's ticket."""
    key.other.execute("SELECT FROM inturn.ticket WHERE topic = %s FOR UPDATE", [key.topic])
    append_missing(key)
    key.hands.commit()
    key.other.rollback()
    _answer_hints(key)


def append_on_a_snapshot(key: Key) -> None:
    key.hands.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    key.append()
    key.hands.commit()
    _answer_hints(key)


def _answer_hints(key: Key) -> None:
    key.hands.execute("SELECT inturn._take_hints(ARRAY[%s])", [key.topic])


# Appliers, in one transaction.


def turn(key: Key) -> None:
    if key.claim():
        key.finish()


def turn_in_part(key: Key) -> None:
    if key.claim():
        del key.pending[1:]
        key.finish()


def turn_before_a_gap(key: Key) -> None:
    """A later number comes meanwhile."""
    if key.claim():
        key.append(key.last + 2, by=key.other)
        key.other.commit()
        key.finish()


def turn_beside_an_append(key: Key) -> None:
    if key.claim():
        key.append(by=key.other)
        key.finish()


def turn_dies(key: Key) -> None:
    turn(key)
    key.hands.rollback()


def turn_fails(key: Key) -> None:
    if key.claim():
        key.fail()


def turn_holds(key: Key) -> None:
    if key.claim():
        key.fail("hold")


def turn_exhausted(key: Key) -> None:
    key.set("max_attempts = 1")
    turn_fails(key)


def turn_skips(key: Key) -> None:
    if key.claim():
        key.fail("skip")


def turn_cancels(key: Key) -> None:
    key.set("max_attempts = 1, on_exhausted = 'cancel-rest'")
    turn_fails(key)


# Appliers, by lease.


def lease(key: Key) -> None:
    key.lease()


def lease_after_the_last_attempt(key: Key) -> None:
    key.set("max_attempts = 1")
    # Lost while it was alone: the first time is no attempt.
    key.hands.execute(
        "UPDATE inturn.key_mark SET lost = 2 WHERE topic = %s AND lease_until <= clock_timestamp()",
        [key.topic],
    )
    key.lease()


def advance(key: Key) -> None:
    key.advance()


def advance_again(key: Key) -> None:
    key.report("advance", key.look("applied_seq"))


def advance_in_a_paused_topic(key: Key) -> None:
    key.set("paused_at = now()")
    key.advance()


def renew(key: Key) -> None:
    key.report("renew")


def release(key: Key) -> None:
    key.report("release")


def release_before_a_gap(key: Key) -> None:
    """A later number has come meanwhile, and what is before it was done."""
    key.report("renew")
    gap = key.last + 1
    key.append(gap + 1, by=key.other)
    key.other.commit()
    while key.look("applied_seq") < gap - 1:
        if not key.advance():
            return
    key.report("release")


def lease_fails(key: Key, asks: str | None = None) -> None:
    key.report("fail", key.look("applied_seq") + 1, "failed by hand", asks)


def lease_holds(key: Key) -> None:
    lease_fails(key, '{"verdict": "hold"}')


def lease_exhausted(key: Key) -> None:
    key.set("max_attempts = 1")
    lease_fails(key)


def lease_skips(key: Key) -> None:
    lease_fails(key, '{"verdict": "skip"}')


def lease_cancels(key: Key) -> None:
    key.set("max_attempts = 1, on_exhausted = 'cancel-rest'")
    lease_fails(key)


# Time: what is due later is due now.


def lease_runs_out(key: Key) -> None:
    key.put(
        "lease_until = now(), ready_at = CASE WHEN ready_at IS NOT NULL THEN now() END",
        "lease_until > now()",
    )


def pause_runs_out(key: Key) -> None:
    """It was one until a time."""
    if key.put("paused_at = paused_at", "paused_at IS NOT NULL"):
        key.call("pause", until=LATER)
        key.put("paused_until = now(), ready_at = greatest(now(), lease_until)")


def wait_runs_out(key: Key) -> None:
    """That before the next attempt."""
    key.put("ready_at = now()", "attempts > 0 AND ready_at > now()")


def gap_times_out(key: Key) -> None:
    """And an applier comes by."""
    if key.put(
        "waiting_at = now() - interval '1 hour', ready_at = now()", "waiting_at + '1 hour' = ready_at"
    ):
        turn(key)


# Operators.


def pause(key: Key) -> None:
    key.call("pause")


def pause_until(key: Key) -> None:
    key.call("pause", until=LATER)


def resume(key: Key) -> None:
    key.call("resume")


def retry(key: Key) -> None:
    key.call("retry")


def retry_all(key: Key) -> None:
    for state in ("held", "retrying"):
        key.hands.execute("SELECT inturn.retry_all(%s, %s)", [key.topic, state])


def skip(key: Key) -> None:
    key.lose_patience()
    key.call("skip", key.look("applied_seq") + 1, REASON)


def cancel_rest(key: Key) -> None:
    key.lose_patience()
    key.call("cancel_rest", REASON)


def fill_gap(key: Key) -> None:
    key.call("fill_gap", key.look("applied_seq") + 1, REASON)


def amend(key: Key) -> None:
    key.lose_patience()
    key.call("amend", key.last, REASON, payload='{"amended": true}')


def replay(key: Key) -> None:
    key.call("replay", 1, REASON)


EVENTS = _named(
    *(append, append_again, append_later, append_missing, append_missing_meanwhile, append_on_a_snapshot),
    *(turn, turn_in_part, turn_before_a_gap, turn_beside_an_append, turn_dies),
    *(turn_fails, turn_holds, turn_exhausted, turn_skips, turn_cancels),
    *(lease, lease_after_the_last_attempt, advance, advance_again, advance_in_a_paused_topic, renew),
    *(release, release_before_a_gap, lease_fails, lease_holds, lease_exhausted, lease_skips, lease_cancels),
    *(lease_runs_out, pause_runs_out, wait_runs_out, gap_times_out),
    *(pause, pause_until, resume, retry, retry_all, skip, cancel_rest, fill_gap, amend, replay),
)
