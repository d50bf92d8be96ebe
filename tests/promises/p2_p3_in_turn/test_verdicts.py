"""What a handler asks for: retry, hold, skip; and what a topic does when attempts run out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb
from support.database import Database, until, wait_transactions_over
from support.oracle import Oracle
from support.process import run_apply

from inturn.applier import Applier, Command, Fleet, Hold, Outcome, Retry, Skip, Verdict

Connection = psycopg.Connection[Any]

_TARGET = """
    -- What a payload says: state and detail of what is raised after the effect, while attempt <= until.
    CREATE FUNCTION app.ask(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO app.witness (key, seq, name) VALUES (command.key, command.seq, command.name);
        IF command.payload ? 'state'
           AND command.attempt <= coalesce((command.payload->>'until')::integer, 99) THEN
            RAISE EXCEPTION USING ERRCODE = command.payload->>'state', MESSAGE = command.payload->>'reason',
                DETAIL = coalesce(command.payload->>'detail', '');
        END IF;
    END $$;
"""
#: Who applies: a SQL target; a Python handler that raises; one that lets a SQL function's error pass.
BY = ["sql", "python", "function"]


def handlers() -> Applier:
    applier = Applier()

    @applier.handler("python")
    def ask(connection: Connection, command: Command) -> None:
        connection.execute(
            "INSERT INTO app.witness (key, seq, name) VALUES (%s, %s, %s)",
            [command.key, command.seq, command.name],
        )
        said = command.payload
        if "state" not in said or command.attempt > said.get("until", 99):
            return
        if said["state"] == "IT020":
            after = said.get("detail")
            raise Retry(said["reason"], after=float(after.split()[0]) if after else None)
        raise {"IT021": Hold, "IT022": Skip}.get(said["state"], ValueError)(said["reason"])

    @applier.handler("function")
    def call(connection: Connection, command: Command) -> None:
        connection.execute(
            "SELECT app.ask(ROW(%s, %s, %s, %s, %s, now(), %s)::inturn.command)",
            (*_place(command), command.name, Jsonb(command.payload), command.attempt),
        )

    return applier


def _place(command: Command) -> tuple[str, str, int]:
    return command.topic, command.key, command.seq


@pytest.fixture(params=BY)
def topic(request: pytest.FixtureRequest, witness: Database) -> str:
    """A topic for each way of applying, of which this test uses one."""
    witness.execute(_TARGET)
    for name in BY:
        target = "sql:app.ask" if name == "sql" else "python"
        witness.execute(
            "SELECT inturn.create_topic(%s, %s, max_attempts => 3, backoff_base => '1 ms')", [name, target]
        )
    by: str = request.param
    return by


@pytest.fixture
def oracle(witness: Database) -> Oracle:
    return Oracle(witness)


def append(database: Database, topic: str, key: str = "x", **payload: Any) -> None:
    database.execute("SELECT inturn.append(%s, %s, 'do', %s)", [topic, key, Jsonb(payload)])


def _handlers(topic: str) -> Applier | None:
    """The handlers of one topic: an applier refuses to start without any of its topics."""
    if topic == "sql":
        return None
    applier = Applier()
    applier.handler(topic)(handlers().find(Command(topic, "x", 1, "do", {}, datetime.now(UTC), 1, 1)))
    return applier


def drain(database: Database, topic: str) -> Outcome:
    fleet = Fleet(database.applier_dsn, _handlers(topic), topics=[topic], drain=True)
    fleet.start()
    assert fleet.wait(60)
    outcome = fleet.end(0)
    assert outcome.error is None
    return outcome


def effects(database: Database, key: str = "x") -> list[int]:
    rows = database.execute("SELECT seq FROM app.witness WHERE key = %s ORDER BY id", [key])
    return [seq for (seq,) in rows]


def cursor(database: Database, *columns: str, key: str = "x") -> Any:
    (row,) = database.execute(f"SELECT {', '.join(columns)} FROM inturn.key_cursor WHERE key = %s", [key])
    return row[0] if len(columns) == 1 else row


def skips(database: Database) -> list[tuple[Any, ...]]:
    return database.execute("SELECT key, seq, skipped_by, reason FROM inturn.skip ORDER BY key, seq")


def outcomes(database: Database, key: str = "x") -> list[str]:
    rows = database.execute(
        "SELECT outcome FROM inturn.turn WHERE key = %s AND outcome <> 'idle' ORDER BY epoch", [key]
    )
    return [outcome for (outcome,) in rows]


def test_skip_passes_over_the_command_and_undoes_its_effect(
    witness: Database, oracle: Oracle, topic: str
) -> None:
    append(witness, topic)
    append(witness, topic, state="IT022", reason="a duplicate")
    append(witness, topic)
    append(witness, topic, "beside")
    outcome = drain(witness, topic)
    assert (outcome.commands, outcome.failures, outcome.skipped, outcome.held) == (3, 0, 1, 0)
    assert (effects(witness), effects(witness, "beside")) == ([1, 3], [1])
    assert skips(witness) == [("x", 2, "handler", "a duplicate")]
    assert outcomes(witness) == ["skipped", "applied"]
    assert witness.value("SELECT error FROM inturn.turn WHERE outcome = 'skipped'") == "a duplicate"
    oracle.check_drained()


def test_skip_of_a_key_s_last_command_lets_it_go_idle(witness: Database, oracle: Oracle, topic: str) -> None:
    append(witness, topic, state="IT022", reason="never mind")
    drain(witness, topic)
    assert cursor(witness, "applied_seq", "ready_at", "last_error", "attempts") == (1, None, None, 0)
    oracle.check_drained()
    append(witness, topic)
    drain(witness, topic)
    assert effects(witness) == [2]
    oracle.check_drained()


def test_hold_holds_the_key_at_once_with_its_reason(witness: Database, oracle: Oracle, topic: str) -> None:
    append(witness, topic)
    append(witness, topic, state="IT021", reason="wait for the auditor")
    append(witness, topic)
    outcome = drain(witness, topic)
    assert (outcome.commands, outcome.failures, outcome.skipped, outcome.held) == (1, 1, 0, 1)
    assert cursor(witness, "applied_seq", "attempts", "last_error") == (1, 1, "wait for the auditor")
    assert effects(witness) == [1]
    assert outcomes(witness) == ["held"]
    oracle.check()


def test_retry_waits_as_long_as_it_asked(witness: Database, oracle: Oracle, topic: str) -> None:
    append(witness, topic, state="IT020", reason="busy", detail="1800 seconds")
    append(witness, topic)
    outcome = drain(witness, topic)
    assert (outcome.commands, outcome.failures, outcome.skipped) == (0, 1, 0)
    wait = cursor(witness, "extract(epoch FROM ready_at - failed_at)::float8")
    assert wait == pytest.approx(1800, abs=0.1)
    assert cursor(witness, "attempts", "held_at") == (1, None)
    assert cursor(witness, "split_part(last_error, E'\\n', 1)") == "busy"
    assert effects(witness) == []
    oracle.check()


def test_retry_without_a_time_waits_the_usual_backoff_and_counts_as_an_attempt(
    witness: Database, oracle: Oracle, topic: str
) -> None:
    append(witness, topic, state="IT020", reason="busy")
    until(lambda: drain(witness, topic).held, "the third attempt")
    assert outcomes(witness) == ["retrying", "retrying", "held"]
    assert cursor(witness, "attempts") == 3
    oracle.check()


def test_after_a_retry_the_key_goes_on_in_turn(witness: Database, oracle: Oracle, topic: str) -> None:
    append(witness, topic)
    append(witness, topic, state="IT020", reason="busy", detail="0 seconds", until=1)
    append(witness, topic)
    until(lambda: drain(witness, topic) and effects(witness) == [1, 2, 3], "all")
    oracle.check_drained()


@pytest.mark.parametrize("detail", ["soon", "1 second; DROP", "99999999999999 years"])
def test_a_malformed_interval_is_said_and_the_usual_backoff_taken(witness: Database, detail: str) -> None:
    witness.execute(_TARGET)
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
    witness.execute(_TARGET)
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


def test_another_exception_of_a_handler_is_a_failure_as_ever(
    witness: Database, oracle: Oracle, topic: str
) -> None:
    """Also one whose SQLSTATE is only like those."""
    append(witness, topic, state="IT029", reason="broken")
    until(lambda: drain(witness, topic).held, "held")
    assert outcomes(witness) == ["retrying", "retrying", "held"]
    assert "broken" in cursor(witness, "last_error")
    oracle.check()


def test_what_came_before_a_skip_in_its_turn_stays_applied_beside_others(
    witness: Database, oracle: Oracle, topic: str
) -> None:
    """Several keys in a transaction, several verdicts among them."""
    for key in ("a", "b", "c", "d"):
        append(witness, topic, key)
        append(witness, topic, key)
    append(witness, topic, "b", state="IT022", reason="skip b")
    append(witness, topic, "c", state="IT021", reason="hold c")
    for key in ("a", "b", "c", "d"):
        append(witness, topic, key)
    drain(witness, topic)
    done = {key: effects(witness, key) for key in "abcd"}
    assert done == {"a": [1, 2, 3], "b": [1, 2, 4], "c": [1, 2], "d": [1, 2, 3]}
    oracle.check()


def test_without_attempts_left_the_topic_decides(witness: Database, oracle: Oracle, topic: str) -> None:
    """hold, skip, cancel-rest, one after the other by set_topic."""
    for key, on_exhausted in (("h", "hold"), ("s", "skip"), ("c", "cancel-rest")):
        if on_exhausted != "hold":
            witness.execute("SELECT inturn.set_topic(%s, on_exhausted => %s)", [topic, on_exhausted])
        append(witness, topic, key)
        append(witness, topic, key, state="XX001", reason=f"broken {key}")
        append(witness, topic, key)
        append(witness, topic, key)
        until(
            lambda key=key: (
                drain(witness, topic)  # type: ignore[misc]
                and cursor(witness, "ready_at", key=key) is None
            ),
            f"{on_exhausted} is over",
        )
    done = {key: effects(witness, key) for key in "hsc"}
    assert done == {"h": [1], "s": [1, 3, 4], "c": [1]}
    assert outcomes(witness, "h") == ["retrying", "retrying", "held"]
    assert outcomes(witness, "s") == ["retrying", "retrying", "skipped", "applied"]
    assert outcomes(witness, "c") == ["retrying", "retrying", "cancelled"]
    assert [(key, seq, by) for key, seq, by, _ in skips(witness)] == [
        *(("c", seq, "attempts") for seq in (2, 3, 4)),
        ("s", 2, "attempts"),
    ]
    assert all("broken" in reason for *_, reason in skips(witness))
    oracle.check()
    append(witness, topic, "c")
    drain(witness, topic)
    assert effects(witness, "c") == [1, 5]
    oracle.check()


def test_counts_say_what_became_of_the_commands(witness: Database, topic: str) -> None:
    witness.execute("SELECT inturn.set_topic(%s, max_attempts => 1, on_exhausted => 'cancel-rest')", [topic])
    append(witness, topic, state="XX001", reason="broken")
    append(witness, topic)
    append(witness, topic)
    append(witness, topic, "y", state="IT022", reason="not wanted")
    outcome = drain(witness, topic)
    # One failure cancelled three commands, and one was skipped because its handler asked for it.
    assert (outcome.commands, outcome.failures, outcome.skipped, outcome.held) == (0, 1, 4, 0)


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
    fleet = Fleet(database.applier_dsn, _handlers(topic), **{"topics": [topic], **options})
    fleet.start()
    try:
        yield fleet
    finally:
        assert fleet.end(20).error is None


def test_settings_of_a_topic_reach_an_applier_at_work(witness: Database, oracle: Oracle, topic: str) -> None:
    """max_attempts, backoff, batch_commands and on_exhausted, without a restart."""

    def set_topic(settings: str) -> None:
        witness.execute(f"SELECT inturn.set_topic(%s, {settings})", [topic])
        # A claim in hand may have read the old ones, and still find what is appended from here on.
        wait_transactions_over(witness)

    set_topic("max_attempts => 1")
    with at_work(witness, topic, workers=2):
        append(witness, topic, "held", state="XX001", reason="broken")
        until(lambda: cursor(witness, "held_at", key="held"), "held at the first attempt")
        set_topic("on_exhausted => 'skip'")
        append(witness, topic, "skipped", state="XX001", reason="broken")
        until(lambda: skips(witness), "skipped")
        set_topic("max_attempts => 4, backoff_base => '30 minutes', backoff_cap => '1 hour'")
        append(witness, topic, "waiting", state="XX001", reason="broken")
        until(lambda: cursor(witness, "attempts", key="waiting"), "the first attempt of four")
        assert 890 < cursor(witness, "extract(epoch FROM ready_at - failed_at)", key="waiting") < 1801
        set_topic("batch_commands => 2, backoff_base => '1 ms'")
        witness.execute(
            "SELECT inturn.append_many(%s, array_fill('deep'::text, ARRAY[9]),"
            " array_fill('do'::text, ARRAY[9]))",
            [topic],
        )
        until(lambda: len(effects(witness, "deep")) == 9, "applied")
    longest = witness.value("SELECT max(to_seq - from_seq) + 1 FROM inturn.turn WHERE key = 'deep'")
    assert longest == 2
    oracle.check()


@pytest.mark.parametrize(
    ("was", "becomes"),
    [("sql:app.ask", "sql:app.other"), ("python", "sql:app.other"), ("sql:app.ask", "python")],
)
def test_another_target_is_taken_up_by_an_applier_at_work(
    witness: Database, oracle: Oracle, was: str, becomes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost, nothing is applied twice or out of turn, while commands keep coming."""
    monkeypatch.setattr("inturn.applier.pacing.CHOOSE_SECONDS", 0.2)
    witness.execute(_TARGET)
    witness.execute("""
        CREATE FUNCTION app.other(command inturn.command) RETURNS void LANGUAGE sql AS $$
            INSERT INTO app.witness (key, seq, name) VALUES (command.key, command.seq, 'other') $$;
    """)
    witness.execute("SELECT inturn.create_topic('python', %s)", [was])
    # An applier with handlers of a topic that has a SQL target is refused at the start only.
    applying = _handlers("python") if was == "python" else None
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


APPLIER = _handlers("python")
