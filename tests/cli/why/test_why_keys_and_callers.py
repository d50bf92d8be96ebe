"""`why` of a key that is not there, that has no number yet, that a caller has in hand, or that is idle."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from support.arrivals import arrive, number
from support.database import Database
from support.process import run_inturn
from support.race import append
from support.refusal import refusal
from support.why_answers import asked, backends, caller_of, explained

from inturn.cli.look.why import TITLES
from inturn.cli.terminal.key_text import escaped


def test_every_cause_has_its_title_and_its_test() -> None:
    source = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    assert [cause for cause in TITLES if f'"{cause}"' not in source] == []


# No number yet: tests/sql/test_intake.py has the others.


def test_commands_that_have_no_number_yet_wait_for_who_has_the_key_locked(witness: Database) -> None:
    witness.execute("SELECT inturn.create_topic('posts', 'sql:app.apply_order', numbering => 'arrival')")
    witness.execute(
        "SELECT inturn.announce_applier('a', '{posts}', 'host', 1, version_num) FROM inturn.schema_version"
    )
    arrive(witness, "x", "a")
    assert number(witness) == 1
    witness.execute("CALL inturn.apply()")
    operator = witness.session()
    operator.execute("SELECT FROM inturn.key_sequence WHERE key = 'x' FOR UPDATE")
    arrive(witness, "x", "b")
    assert number(witness) == 0
    answer, out = explained(witness, "x", "not_numbered", "posts")
    assert answer["details"]["arrived"] == 1
    assert f"(backend {operator.pid} of" in out


# No such key.


def test_no_such_key_names_those_that_may_be_meant(witness: Database) -> None:
    witness.execute("SELECT inturn.create_topic('mails')")
    witness.execute("SELECT inturn.append('mails', 'order-77', 'send')")
    for key in ("order-42", "order-43", "order-421", "zebra"):
        append(witness, key)

    def near(key: str, topic: str | None = "orders") -> list[str]:
        answer = asked(witness, key, topic)
        assert answer["cause"] == "no_such_key"
        return [f"{found['topic']}/{found['key']}" for found in answer["details"]["near"]]

    answer, out = explained(witness, "ORDER-42", "no_such_key")
    assert answer["details"]["near"][0] == {"topic": "orders", "key": "order-42"}
    assert "$ inturn why --topic orders order-42" in out
    assert near(" order-42\n")[0] == "orders/order-42"
    for slip in ("oredr-42", "order--42", "orrder-42", "ordr-42", "order42", "order-52", "irder-42"):
        assert near(slip)[0] == "orders/order-42", slip
        assert near(slip, None)[0] == "orders/order-42", slip
    assert near("order-422")[0] == "orders/order-42"
    assert near("order-77")[0] == "mails/order-77"
    assert set(near("order-4")) == {"orders/order-42", "orders/order-43", "orders/order-421"}
    assert near("giraffe") == near("") == near("\x01") == []
    assert near("Order-42", None) == ["orders/order-42"]
    assert near("x" * 5000, None) == []
    assert asked(witness, "giraffe", None)["topic"] is None


def test_every_topic_that_has_the_key_is_explained(witness: Database) -> None:
    witness.execute("SELECT inturn.create_topic('mails')")
    witness.execute("SELECT inturn.append('mails', 'a', 'send')")
    append(witness, "a")
    code, out, _ = run_inturn(witness.dsn, "why", "a", "--json")
    assert code == 0
    assert [(each["topic"], each["cause"]) for each in json.loads(out)] == [
        ("mails", "no_applier"),
        ("orders", "no_applier"),
    ]
    code, out, _ = run_inturn(witness.dsn, "why", "a")
    first, second = out.split("\n\n")
    assert first.startswith("a of topic mails: no applier for ")
    assert second.startswith("a of topic orders: no applier for ")
    code, out, _ = run_inturn(witness.dsn, "why", "b")
    assert code == 1
    assert out.startswith("b: no such key\n")


def test_an_unknown_topic_is_refused(database: Database) -> None:
    assert refusal(database, "SELECT * FROM inturn.why('nosuch', 'a')").sqlstate == "IT001"
    code, out, err = run_inturn(database.dsn, "why", "a", "--topic", "nosuch")
    assert (code, out) == (1, "")
    assert "nosuch" in err


def test_what_a_key_holds_is_printed_and_never_taken_for_a_place_to_fill(witness: Database) -> None:
    witness.execute("UPDATE inturn.topic SET backoff_base = '1 hour', backoff_cap = '2 hours'")
    for key in ("{topic} {key}  # rm -rf", "-x'\"\x1b\\ \u202e", "it's"):
        witness.execute("SELECT inturn.append('orders', %s, 'fail')", [key])
        witness.execute("CALL inturn.apply()")
        (each,) = json.loads(run_inturn(witness.dsn, "why", "--topic", "orders", "--json", "--", key)[1])
        assert each["cause"] == "retrying"
        _, retry = each["to_do"]
        # As the shell reads it.
        words = subprocess.run(
            ["/bin/sh", "-c", f"set -- {retry}\nprintf '%s\\n' \"$@\""],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        assert words[:4] == ["inturn", "retry", "--topic", "orders"]
        assert words[-1] == escaped(key)
        assert run_inturn(witness.dsn, "why", "--json", *words[2:])[0] == 0
        code, out, _ = run_inturn(witness.dsn, "why", *words[2:])
        assert code == 0
        assert "\x1b" not in out
        assert "\u202e" not in out


def test_among_many_keys_a_wrong_one_is_answered_quickly(database: Database) -> None:
    for topic in ("a", "b"):
        database.execute("SELECT inturn.create_topic(%s)", [topic])
        for table, columns, values in (
            ("key_sequence", "", ""),
            ("ticket", ", epoch, applied_seq, ready_at", ", 0, 0, clock_timestamp()"),
            ("command_log", ", seq, name, payload", ", 1, 'insert', '{}'"),
        ):
            database.execute(
                f"INSERT INTO inturn.{table} (topic, key{columns})"
                f" SELECT %s, 'order-' || n{values} FROM generate_series(1, 100000) n",
                [topic],
            )
    for _ in range(2):
        session = database.session()
        session.execute("SET statement_timeout = '5s'")
        for where, key, cause in (
            (None, "Order-77777", "no_such_key"),
            (None, "giraffe", "no_such_key"),
            ("a", "order-77777", "no_applier"),
        ):
            assert session.execute("SELECT cause FROM inturn.why(%s, %s)", [where, key]) == [(cause,)]
        ((read,),) = session.execute(
            "SELECT sum(seq_tup_read + idx_tup_fetch) FROM pg_stat_xact_user_tables"
            " WHERE schemaname = 'inturn' AND relname NOT IN ('topic', 'applier', 'listener')"
        )
        assert read < 1000
        session.rollback()
        database.execute("ANALYZE")


# Callers.


def test_the_first_append_of_a_key_is_still_open(witness: Database) -> None:
    caller = caller_of(witness)
    append(caller, "a")
    answer, out = explained(witness, "a", "appending")
    assert backends(answer) == [caller.pid]
    assert f"pg_terminate_backend({caller.pid})" in out
    assert "web shop" in out
    assert asked(witness, "a", None)["topic"] == "orders"
    assert asked(witness, "b")["cause"] == "no_such_key"
    # Nothing is left of the question, and nobody was held up by it.
    caller.commit()
    assert witness.execute("SELECT topic, key FROM inturn.key_sequence") == [("orders", "a")]
    assert asked(witness, "a")["cause"] == "no_applier"


def test_one_of_several_callers_is_named_when_no_row_tells_which(witness: Database) -> None:
    callers = [caller_of(witness), caller_of(witness)]
    for caller, key in zip(callers, "ab", strict=True):
        append(caller, key)
    answer, out = explained(witness, "a", "appending")
    assert sorted(backends(answer)) == sorted(caller.pid for caller in callers)
    assert "one of 2 sessions" in " ".join(out.split())


def test_the_next_command_is_being_appended_and_callers_queue(drained: Database) -> None:
    first, *others = [caller_of(drained) for _ in range(4)]
    append(first, "a")
    answer, out = explained(drained, "a", "appending")
    assert (backends(answer), answer["details"]["waiting"]) == ([first.pid], 0)
    assert answer["details"]["sessions"][0]["application"] == "web shop"
    assert "inturn.append" in out
    running = []
    for other in others:
        running.append(other.begin("SELECT inturn.append('orders', 'a', 'insert')"))
        other.wait_blocked()
    answer, out = explained(drained, "a", "appending")
    assert (backends(answer), answer["details"]["waiting"]) == ([first.pid], 3)
    assert "3 more callers wait behind it" in " ".join(out.split())
    first.rollback()
    for other, call in zip(others, running, strict=True):
        call.result()
        other.rollback()
    assert asked(drained, "a")["cause"] == "nothing_pending"


def test_a_caller_whose_savepoint_was_released_is_found(drained: Database) -> None:
    caller = caller_of(drained)
    caller.execute("SAVEPOINT one")
    append(caller, "a")
    assert backends(asked(drained, "a")) == [caller.pid]
    caller.execute("RELEASE one")
    answer, _ = explained(drained, "a", "appending")
    assert backends(answer) == [caller.pid]


def test_a_caller_on_a_key_that_an_applier_goes_round_in_vain(drained: Database) -> None:
    """The second command is applied, while a third's transaction is open: the key stays ready."""
    append(drained, "a")
    caller = caller_of(drained)
    append(caller, "a")
    drained.execute("CALL inturn.apply(max_seconds => 0.2)")
    answer, _ = explained(drained, "a", "appending")
    assert backends(answer) == [caller.pid]


def test_whoever_rebuilds_an_index_is_not_taken_for_a_caller(drained: Database) -> None:
    """REINDEX keeps every INSERT waiting, also the one by which why finds out whether a command is open."""
    drained.execute("SELECT inturn.create_topic('given', 'sql:app.apply_order', numbering => 'given')")
    drained.execute("SELECT inturn.append('given', 'a', 'insert', seq => n) FROM unnest(ARRAY[1, 3]) n")
    drained.execute("CALL inturn.apply()")
    caller, rebuilding = caller_of(drained), drained.session()
    rebuilding.execute("LOCK TABLE inturn.key_sequence IN SHARE MODE")
    explained(drained, "z", "no_such_key")
    rebuilding.rollback()
    caller.execute("SELECT FROM inturn.key_sequence WHERE topic = 'given' FOR UPDATE")
    rebuilding.execute("LOCK TABLE inturn.command_log IN SHARE MODE")
    explained(drained, "a", "waiting", "given")


def test_nothing_is_pending(drained: Database) -> None:
    answer, out = explained(drained, "a", "nothing_pending")
    assert answer["details"]["applied_seq"] == 1
    assert answer["since"] == drained.value("SELECT finished_at FROM inturn.turn")
    assert "$ inturn show --topic orders a" in out
