"""What a handler asks for: retry, hold, skip; and what a topic does when attempts run out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from support.database import Database, until, wait_transactions_over
from support.oracle import Oracle
from support.process import run_apply
from support.verdicts import BY, TARGET, Way, append, cursor, drain, effects, handlers_of

from inturn.applier import Applier, Command, Fleet, Hold, Retry, Skip, Verdict

Connection = psycopg.Connection[Any]


@pytest.fixture
def oracle(witness: Database) -> Oracle:
    return Oracle(witness)


@pytest.fixture
def ways(witness: Database) -> list[Way]:
    """Those of BY, each with a topic and keys of its own."""
    witness.execute(TARGET)
    return [Way(witness, by) for by in BY]


def test_skip_passes_over_the_command_and_undoes_its_effect(
    witness: Database, oracle: Oracle, ways: list[Way]
) -> None:
    for way in ways:
        way.append()
        way.append(state="IT022", reason="a duplicate")
        way.append()
        way.append("beside")
        outcome = way.drain()
        assert (outcome.commands, outcome.failures, outcome.skipped, outcome.held) == (3, 0, 1, 0), way.topic
        assert (way.effects(), way.effects("beside")) == ([1, 3], [1]), way.topic
        assert way.skips() == [("x", 2, "handler", "a duplicate")]
        assert way.outcomes() == ["skipped", "applied"]
        error = "SELECT error FROM inturn.turn WHERE outcome = 'skipped' AND topic = %s"
        assert witness.value(error, [way.topic]) == "a duplicate"
        oracle.check_drained()


def test_skip_of_a_key_s_last_command_lets_it_go_idle(oracle: Oracle, ways: list[Way]) -> None:
    for way in ways:
        way.append(state="IT022", reason="never mind")
        way.drain()
        assert way.cursor("applied_seq", "ready_at", "last_error", "attempts") == (1, None, None, 0)
        oracle.check_drained()
        way.append()
        way.drain()
        assert way.effects() == [2], way.topic
        oracle.check_drained()


def test_hold_holds_the_key_at_once_with_its_reason(oracle: Oracle, ways: list[Way]) -> None:
    for way in ways:
        way.append()
        way.append(state="IT021", reason="wait for the auditor")
        way.append()
        outcome = way.drain()
        assert (outcome.commands, outcome.failures, outcome.skipped, outcome.held) == (1, 1, 0, 1), way.topic
        assert way.cursor("applied_seq", "attempts", "last_error") == (1, 1, "wait for the auditor")
        assert way.effects() == [1]
        assert way.outcomes() == ["held"]
        oracle.check()


def test_retry_waits_as_long_as_it_asked(oracle: Oracle, ways: list[Way]) -> None:
    for way in ways:
        way.append(state="IT020", reason="busy", detail="1800 seconds")
        way.append()
        outcome = way.drain()
        assert (outcome.commands, outcome.failures, outcome.skipped) == (0, 1, 0), way.topic
        wait = way.cursor("extract(epoch FROM ready_at - failed_at)::float8")
        assert wait == pytest.approx(1800, abs=0.1)
        assert way.cursor("attempts", "held_at") == (1, None)
        assert way.cursor("split_part(last_error, E'\\n', 1)") == "busy"
        assert way.effects() == []
        oracle.check()


def test_retry_without_a_time_waits_the_usual_backoff_and_counts_as_an_attempt(
    oracle: Oracle, ways: list[Way]
) -> None:
    for way in ways:
        way.append(state="IT020", reason="busy")
        until(lambda way=way: way.drain().held, "the third attempt")  # type: ignore[misc]
        assert way.outcomes() == ["retrying", "retrying", "held"], way.topic
        assert way.cursor("attempts") == 3
        oracle.check()


def test_after_a_retry_the_key_goes_on_in_turn(oracle: Oracle, ways: list[Way]) -> None:
    for way in ways:
        way.append()
        way.append(state="IT020", reason="busy", detail="0 seconds", until=1)
        way.append()
        until(lambda way=way: way.drain() and way.effects() == [1, 2, 3], f"all by {way.topic}")  # type: ignore[misc]
        oracle.check_drained()


@pytest.mark.parametrize("detail", ["soon", "1 second; DROP", "99999999999999 years"])
def test_a_malformed_interval_is_said_and_the_usual_backoff_taken(witness: Database, detail: str) -> None:
    witness.execute(TARGET)
    witness.execute("SELECT inturn.create_topic('sql', 'sql:app.ask')")
    witness.execute("SELECT inturn.create_topic('function')")
    for topic in ("sql", "function"):
        append(witness, topic, topic, state="IT020", reason="busy", detail=detail)
        drain(witness, topic)
        error = cursor(witness, "last_error", key=topic)
        assert error.splitlines() == [
            "busy",
            f"DETAIL: {detail}",
            "That DETAIL is not an interval: the command is tried again after the usual wait.",
        ]
        wait = cursor(witness, "extract(epoch FROM ready_at - failed_at)::float8", key=topic)
        assert 0.4 <= wait <= 1.1


@pytest.mark.parametrize(("detail", "seconds"), [("-5 minutes", 0), ("500 years", 365 * 86400)])
def test_an_interval_out_of_bounds_is_brought_within_them(
    witness: Database, detail: str, seconds: float
) -> None:
    witness.execute(TARGET)
    witness.execute("SELECT inturn.create_topic('sql', 'sql:app.ask')")
    append(witness, "sql", state="IT020", reason="busy", detail=detail)
    witness.execute("SELECT inturn.apply_batch('sql', '-infinity', 1, 'test')")
    wait = cursor(witness, "extract(epoch FROM ready_at - failed_at)::float8")
    assert wait == pytest.approx(seconds, abs=86400 * 1.1 if seconds else 0.1)


@pytest.mark.parametrize("after", [-1, -0.001, math.nan, math.inf, 400 * 86400.0, timedelta(days=-1)])
def test_an_absurd_wait_is_refused_where_it_is_asked_for(after: float | timedelta) -> None:
    with pytest.raises(ValueError, match="0 seconds to a year are allowed"):
        Retry("busy", after=after)


def test_a_wait_is_seconds_or_a_timedelta() -> None:
    assert Retry(after=90).after == Retry(after=timedelta(minutes=1, seconds=30)).after
    assert Retry().after is None
    assert Retry(after=0).after == timedelta(0)


def test_a_reason_that_says_nothing_is_replaced_by_what_was_asked() -> None:
    for verdict, said in ((Retry(), "try again"), (Hold("  "), "hold"), (Skip(""), "skip")):
        assert isinstance(verdict, Verdict)
        assert said in str(verdict)


@pytest.mark.parametrize("how", ["from", "while", "from None"])
def test_the_error_behind_a_verdict_is_kept(witness: Database, how: str) -> None:
    witness.execute("SELECT inturn.create_topic('python')")
    applier = Applier()

    @applier.handler("python")
    def hold(connection: Connection, command: Command) -> None:
        try:
            dict[str, str]()["article 7"]
        except KeyError as error:
            if how == "from":
                raise Hold("no such article") from error
            if how == "from None":
                raise Hold("no such article") from None
            raise Hold("no such article")  # noqa: B904

    append(witness, "python")
    fleet = Fleet(witness.applier_dsn, applier, drain=True)
    fleet.start()
    fleet.wait(60)
    fleet.end(0)
    error = cursor(witness, "last_error")
    assert error.startswith("no such article")
    assert ("article 7" in error) == ("Traceback" in error) == (how != "from None")


def test_another_exception_of_a_handler_is_a_failure_as_ever(oracle: Oracle, ways: list[Way]) -> None:
    """Also one whose SQLSTATE is only like those."""
    for way in ways:
        way.append(state="IT029", reason="broken")
        until(lambda way=way: way.drain().held, "held")  # type: ignore[misc]
        assert way.outcomes() == ["retrying", "retrying", "held"], way.topic
        assert "broken" in way.cursor("last_error")
        oracle.check()


def test_what_came_before_a_skip_in_its_turn_stays_applied_beside_others(
    oracle: Oracle, ways: list[Way]
) -> None:
    """Several keys in a transaction, several verdicts among them."""
    for way in ways:
        for key in ("a", "b", "c", "d"):
            way.append(key)
            way.append(key)
        way.append("b", state="IT022", reason="skip b")
        way.append("c", state="IT021", reason="hold c")
        for key in ("a", "b", "c", "d"):
            way.append(key)
        way.drain()
        done = {key: way.effects(key) for key in "abcd"}
        assert done == {"a": [1, 2, 3], "b": [1, 2, 4], "c": [1, 2], "d": [1, 2, 3]}, way.topic
        oracle.check()


def test_without_attempts_left_the_topic_decides(witness: Database, oracle: Oracle, ways: list[Way]) -> None:
    """hold, skip, cancel-rest, one after the other by set_topic."""
    for way in ways:
        for key, on_exhausted in (("h", "hold"), ("s", "skip"), ("c", "cancel-rest")):
            if on_exhausted != "hold":
                witness.execute("SELECT inturn.set_topic(%s, on_exhausted => %s)", [way.topic, on_exhausted])
            way.append(key)
            way.append(key, state="XX001", reason=f"broken {key}")
            way.append(key)
            way.append(key)
            until(
                lambda way=way, key=key: way.drain() and way.cursor("ready_at", key=key) is None,  # type: ignore[misc]
                f"{on_exhausted} is over",
            )
        done = {key: way.effects(key) for key in "hsc"}
        assert done == {"h": [1], "s": [1, 3, 4], "c": [1]}, way.topic
        assert way.outcomes("h") == ["retrying", "retrying", "held"]
        assert way.outcomes("s") == ["retrying", "retrying", "skipped", "applied"]
        assert way.outcomes("c") == ["retrying", "retrying", "cancelled"]
        assert [(key, seq, by) for key, seq, by, _ in way.skips()] == [
            *(("c", seq, "attempts") for seq in (2, 3, 4)),
            ("s", 2, "attempts"),
        ]
        assert all("broken" in reason for *_, reason in way.skips())
        oracle.check()
        way.append("c")
        way.drain()
        assert way.effects("c") == [1, 5]
        oracle.check()


def test_counts_say_what_became_of_the_commands(witness: Database, ways: list[Way]) -> None:
    for way in ways:
        witness.execute(
            "SELECT inturn.set_topic(%s, max_attempts => 1, on_exhausted => 'cancel-rest')", [way.topic]
        )
        way.append(state="XX001", reason="broken")
        way.append()
        way.append()
        way.append("y", state="IT022", reason="not wanted")
        outcome = way.drain()
        # One failure cancelled three commands, and one was skipped because its handler asked for it.
        assert (outcome.commands, outcome.failures, outcome.skipped, outcome.held) == (0, 1, 4, 0), way.topic


def test_the_summary_and_the_log_say_what_was_skipped(witness: Database) -> None:
    witness.execute("SELECT inturn.create_topic('python', max_attempts => 1)")
    for key, payload in (
        ("a", {"state": "IT022", "reason": "not wanted"}),
        ("b", {"state": "IT021", "reason": "ask me"}),
        ("c", {"state": "IT020", "reason": "later", "detail": "60 s"}),
        ("d", {"state": "XX001", "reason": "broken"}),
    ):
        if key == "c":
            witness.execute("SELECT inturn.set_topic('python', max_attempts => 2)")
        append(witness, "python", key, **payload)
        if key == "b":
            assert _run(witness) == (
                3,
                "applied 0 commands, 1 failed, 1 skipped, 1 key held: see inturn keys --held",
                [
                    "info command skipped by its handler: not wanted a",
                    "warning key held by its handler: ask me b",
                ],
            )
    witness.execute("SELECT inturn.set_topic('python', max_attempts => 1, on_exhausted => 'skip')")
    append(witness, "python", "e", state="IT020", reason="later", detail="60 s")
    code, summary, lines = _run(witness)
    assert (code, summary) == (
        3,
        "applied 0 commands, 3 failed, 3 skipped, 1 key held: see inturn keys --held",
    )
    what = "warning command failed for the last time and was skipped"
    assert lines == [f"{what}: later c", f"{what}: ValueError: broken d", f"{what}: later e"]
    witness.execute("SELECT inturn.set_topic('python', max_attempts => 2)")
    append(witness, "python", "f", state="IT020", reason="later", detail="60 s")
    assert _run(witness)[2] == ["info command put off by its handler: later f"]


_APP = "promises.p2_p3_in_turn.test_verdicts:APPLIER"


def _run(database: Database) -> tuple[int, str, list[str]]:
    code, out, err = run_apply(database.dsn, "--drain", "--log-format", "json", app=_APP)
    logged = [json.loads(line) for line in err.splitlines()]
    return (
        code,
        json.loads(out)["message"].replace(
            json.loads(out)["message"].partition(",")[0], "applied 0 commands"
        ),
        sorted(
            (f"{line['level'].lower()} {line['message']} {line['key']}" for line in logged if "key" in line),
            key=lambda line: line[-1],
        ),
    )


@contextmanager
def at_work(database: Database, topic: str, **options: Any) -> Iterator[Fleet]:
    fleet = Fleet(database.applier_dsn, handlers_of(topic), **{"topics": [topic], **options})
    fleet.start()
    try:
        yield fleet
    finally:
        assert fleet.end(20).error is None


def test_settings_of_a_topic_reach_an_applier_at_work(
    witness: Database, oracle: Oracle, ways: list[Way]
) -> None:
    """max_attempts, backoff, batch_commands and on_exhausted, without a restart."""
    for way in ways:
        with at_work(witness, way.topic, workers=2):
            _set_one_after_the_other(witness, way)
        query = "SELECT max(to_seq - from_seq) + 1 FROM inturn.turn WHERE key = %s"
        assert witness.value(query, [way.key("deep")]) == 2
        oracle.check()


def _set_one_after_the_other(database: Database, way: Way) -> None:
    def set_topic(settings: str) -> None:
        database.execute(f"SELECT inturn.set_topic(%s, {settings})", [way.topic])
        # A claim in hand may have read the old ones, and still find what is appended from here on.
        wait_transactions_over(database)

    set_topic("max_attempts => 1")
    way.append("held", state="XX001", reason="broken")
    until(lambda: way.cursor("held_at", key="held"), "held at the first attempt")
    set_topic("on_exhausted => 'skip'")
    way.append("skipped", state="XX001", reason="broken")
    until(way.skips, "skipped")
    set_topic("max_attempts => 4, backoff_base => '30 minutes', backoff_cap => '1 hour'")
    way.append("waiting", state="XX001", reason="broken")
    until(lambda: way.cursor("attempts", key="waiting"), "the first attempt of four")
    assert 890 < way.cursor("extract(epoch FROM ready_at - failed_at)", key="waiting") < 1801
    set_topic("batch_commands => 2, backoff_base => '1 ms'")
    database.execute(
        "SELECT inturn.append_many(%s, array_fill(%s::text, ARRAY[9]), array_fill('do'::text, ARRAY[9]))",
        [way.topic, way.key("deep")],
    )
    until(lambda: len(way.effects("deep")) == 9, "applied")


@pytest.mark.parametrize(
    ("was", "becomes"),
    [("sql:app.ask", "sql:app.other"), ("python", "sql:app.other"), ("sql:app.ask", "python")],
)
def test_another_target_is_taken_up_by_an_applier_at_work(
    witness: Database, oracle: Oracle, was: str, becomes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost, nothing is applied twice or out of turn, while commands keep coming."""
    monkeypatch.setattr("inturn.applier.pacing.CHOOSE_SECONDS", 0.2)
    witness.execute(TARGET)
    witness.execute("""
        CREATE FUNCTION app.other(command inturn.command) RETURNS void LANGUAGE sql AS $$
            INSERT INTO app.witness (key, seq, name) VALUES (command.key, command.seq, 'other') $$;
    """)
    witness.execute("SELECT inturn.create_topic('python', %s)", [was])
    # An applier with handlers of a topic that has a SQL target is refused at the start only.
    applying = handlers_of("python") if was == "python" else None
    with oracle.watching(0.005):
        fleet = Fleet(witness.applier_dsn, applying, workers=2)
        fleet.start()
        witness.execute("SELECT inturn.append('python', 'k' || n % 7, 'do') FROM generate_series(1, 70) n")
        until(lambda: effects(witness, "k1"), "the first ones")
        witness.execute("SELECT inturn.set_topic('python', target => %s)", [becomes])
        witness.execute("SELECT inturn.append('python', 'k' || n % 7, 'do') FROM generate_series(1, 70) n")
        second = Fleet(witness.applier_dsn, APPLIER) if becomes == "python" else None
        if second:
            second.start()
        witness.execute("SELECT inturn.append('python', 'after', 'do')")
        until(lambda: effects(witness, "after"), "a command under the new target")
        oracle.wait_no_key_ready()
        for running in (fleet, second):
            assert running is None or running.end(20).error is None
    assert oracle.check_drained() == 141
    if becomes != "python":
        # A turn in hand may still be of the old target; a poll later none is.
        witness.execute("SELECT inturn.append('python', 'last', 'do')")
        with at_work(witness, "sql", topics=["python"]):
            until(lambda: effects(witness, "last"), "applied")
        assert witness.value("SELECT name FROM app.witness WHERE key = 'last'") == "other"


APPLIER = handlers_of("python")
