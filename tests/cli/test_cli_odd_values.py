"""No value in the database stops a command: times without an end, bytes that are no text, long settings."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo
from support.database import Database
from support.process import run_inturn
from support.refusal import refusal
from support.server import Server
from support.terminal import Terminal

from inturn.cli.errors import Failure
from inturn.cli.terminal import payload
from inturn.schema.install import upgrade

USAGE = 2


def printed(database: Database, *args: str, code: int = 0) -> str:
    ended, out, err = run_inturn(database.dsn, *args)
    assert (ended, err) == (code, ""), (args, out, err)
    return out


# Some thirty processes, one after the other.
@pytest.mark.timeout(600)
def test_a_pause_without_an_end_stops_no_command(witness: Database) -> None:
    for key in ("k", "l"):
        witness.execute("SELECT inturn.append('orders', %s, 'insert')", [key])
    assert "k: paused until it is resumed;" in printed(witness, "pause", "k", "--until", "infinity")
    witness.execute("SELECT inturn.pause('orders', 'l', until => 'infinity')")
    assert "until it is resumed;" in printed(witness, "pause", "--topic", "orders", "--until", "infinity")
    for key in ("k", "l"):
        for command in (
            ("keys",),
            ("show", key),
            ("status",),
            ("topic", "list"),
            ("topic", "show", "orders"),
        ):
            assert "paused" in printed(witness, *command)
            document = json.loads(printed(witness, *command, "--json"))
            assert '"paused_until": null' in json.dumps(document)
        assert "paused it until it is resumed" in printed(witness, "why", key)
        printed(witness, "why", key, "--json")
    assert "until it is resumed" in printed(witness, "topic", "show", "orders")
    printed(witness, "verify")
    printed(witness, "resume", "--topic", "orders")
    printed(witness, "resume", "k")


def test_a_day_without_dashes_is_a_day_and_no_span_of_seconds(witness: Database) -> None:
    for day in ("20991224", "20991224T180000", "24dec2099"):
        assert "paused until 2099-12-2" in printed(witness, "pause", "--topic", "orders", "--until", day)
    code, out, err = run_inturn(witness.dsn, "pause", "--topic", "orders", "--until", "1800")
    assert (code, out) == (USAGE, "")
    assert "--until 1800 is not a time" in err


def test_a_pause_lasts_a_span_from_now_on(witness: Database) -> None:
    for span in ("90m", "1h30m", "1h 30m", "1.5 hours", "5400seconds"):
        (done,) = json.loads(printed(witness, "pause", "--topic", "orders", "--until", span, "--json"))
        times = (done["after"]["paused_until"], done["acted_at"])
        until, now = (datetime.fromisoformat(text) for text in times)
        assert timedelta(minutes=89) < until - now <= timedelta(minutes=90), span


def test_a_pause_until_after_all_calendars_is_refused(witness: Database) -> None:
    witness.execute("SELECT inturn.append('orders', 'k', 'insert')")
    for what in (("k",), ("--topic", "orders")):
        code, out, err = run_inturn(witness.dsn, "pause", *what, "--until", "20000-01-01")
        assert (code, out) == (1, "")
        assert "after the year 9999" in err


def test_an_interval_that_is_none_is_refused_by_the_name_of_its_option(database: Database) -> None:
    database.execute("SELECT inturn.create_topic('orders')")
    for option in ("--backoff-base", "--backoff-cap", "--gap-timeout", "--lease"):
        for command in ("create", "set"):
            code, out, err = run_inturn(database.dsn, "topic", command, "orders", option, "5x")
            assert (code, out) == (USAGE, ""), (command, option)
            assert err.startswith(f"inturn: {option} cannot be '5x'. Write 90s, 10m,")


def test_topics_are_read_on_eighty_columns(database: Database) -> None:
    database.execute(
        "SELECT inturn.create_topic('shipments-to-the-customers', 'https://shipping.internal.example/v2/commands',"
        " numbering => 'given', on_exhausted => 'cancel-rest', backoff_base => '1500 ms')"
    )
    database.execute("SELECT inturn.create_topic('orders')")
    database.execute("SELECT inturn.pause_topic('orders', 'audit')")
    listed = Terminal(database.dsn, "topic", "list").read()
    assert max(len(line.rstrip()) for line in listed.splitlines()) <= 80
    heading, orders, shipments, *whole = (line.split() for line in listed.splitlines())
    assert whole == [["shipments-to-the-customers"], ["https://shipping.internal.example/v2/commands"]]
    assert heading == ["topic", "target", "attempts", "then", "backoff", "numbers", "state"]
    assert orders == ["orders", "python", "5", "hold", "1s", "to", "5m", "assigned", "paused"]
    assert shipments[2:] == ["5", "cancel-rest", "1500ms", "to", "5m", "given"]
    shown = Terminal(database.dsn, "topic", "show", "shipments-to-the-customers").read()
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= 80
    values = dict(line.split(maxsplit=1) for line in shown.splitlines() if line.strip())
    assert values["topic"] == "shipments-to-the-customers"
    assert values["backoff-base"].strip() == "1500ms"
    assert values["gap-timeout"].strip() == "never"
    assert values["max-payload-bytes"].strip() == "1048576"
    assert run_inturn(database.dsn, "topic", "show", "nosuch")[0] == 1
    document = json.loads(printed(database, "topic", "show", "orders", "--json"))
    assert document["topic"] == "orders"


@pytest.mark.parametrize(
    "document",
    [
        "[" * 2000 + "]" * 2000,
        '{"n": ' + "9" * 5000 + "}",
        '{"n": [1e400, 1E-400, 0.10, ' + "9" * 400 + ".5]}",
        '["' + "[" * 600 + '", "\\"]"]',
    ],
    ids=["deep", "5000 digits", "out of range", "brackets in text"],
)
def test_json_that_python_does_not_take_stops_no_command(witness: Database, document: str) -> None:
    witness.execute("SELECT inturn.append('orders', 'k', 'insert', %s)", [document])
    (key,) = strict(printed(witness, "show", "k", "--json"))
    (command,) = key["commands"]
    (action,) = strict(printed(witness, "amend", "k", "1", "--name", "update", "--reason", "r", "--json"))
    recorded = {"name": "update", "payload": command["payload"]}
    assert_holds(action["after"], recorded, document)
    assert printed(witness, "amend", "k", "1", "--payload", "{}", "--reason", "r")
    (key,) = strict(printed(witness, "show", "k", "--json"))
    assert_holds(key["timeline"][0]["before"], recorded, document)


def assert_holds(found: Any, recorded: dict[str, Any], document: str) -> None:
    """Make sure that it was recorded; what holds something too deep is a text as a whole."""
    if recorded["payload"] == document:
        assert document in found
        assert isinstance(found, str)
    else:
        assert found == recorded


def test_more_than_any_topic_takes_is_not_cut_and_called_no_json(monkeypatch: pytest.MonkeyPatch) -> None:
    for most, given in ((9, '"\u00e9\u00e9\u00e9" '), (8, '"\u00e9\u00e9\u00e9"')):
        monkeypatch.setattr(payload, "_MOST_BYTES", most)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
        assert payload.read_payload("-") == given
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode() + b"1")))
        with pytest.raises(Failure, match="which no topic takes"):
            payload.read_payload("-")


def strict(text: str) -> Any:
    """Return JSON as everybody reads it: without NaN and Infinity."""
    return json.loads(text, parse_constant=pytest.fail)


@pytest.fixture
def ascii_database(server: Server) -> Iterator[Database]:
    """A database in SQL_ASCII, with a key, a command and an error that are no UTF-8, and a good key."""
    with server.connect() as admin:
        admin.execute(
            "CREATE DATABASE raw_template ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
        )
    database = Database(server, "raw", template="raw_template")
    upgrade(make_conninfo(database.dsn, client_encoding="utf8"))
    database.execute("""
        SELECT inturn.create_topic('orders', max_attempts => 1);
        DO $$ BEGIN
            PERFORM inturn.append('orders', 'k' || E'\\xff', 'n' || E'\\xfe', '{"a": 1}');
            PERFORM inturn.append('orders', 'good', 'insert');
        END $$;
    """)
    yield database
    database.drop()
    with server.connect() as admin:
        admin.execute("DROP DATABASE raw_template")


def test_bytes_that_are_no_text_stop_no_command(ascii_database: Database) -> None:
    database = ascii_database
    database.execute("""
        SELECT inturn.fail('orders', c.key, c.epoch, c.seq, 'bad ' || E'\\xfd')
        FROM inturn.claim(topics => '{orders}', max_keys => 1, lease => '1 h', applier => 'a') c
    """)
    assert "good" in printed(database, "keys")
    bad, good = json.loads(printed(database, "keys", "--json"))
    assert (bad["key"], bad["last_error"]) == ("k\udcff", "bad \udcfd")
    assert good["key"] == "good"
    assert "bad" in printed(database, "keys", "--errors")
    for command in (("status",), ("verify",), ("show", "good"), ("why", "good")):
        printed(database, *command)
    # As it is printed it can be given back.
    assert "state    held" in printed(database, "show", r"k\udcff")
    assert "failed for good" in printed(database, "why", r"k\udcff")
    assert "held -> ready" in printed(database, "retry", r"k\udcff")
    printed(database, "cancel-rest", r"k\udcff", "--reason", "r")


def test_where_there_can_be_no_such_bytes_what_stands_for_them_is_meant_as_it_stands(
    witness: Database,
) -> None:
    witness.execute("SELECT inturn.append('orders', %s, 'insert')", [r"k\udcff"])
    assert "state    ready" in printed(witness, "show", r"k\udcff")
    assert "no such key" in printed(witness, "why", r"j\udcff", code=1)


def test_what_is_cut_is_cut_after_a_word(database: Database) -> None:
    database.execute("SELECT inturn.create_topic('orders', max_attempts => 1)")
    database.execute("SELECT inturn.append('orders', 'k', 'insert')")
    error = " ".join(f"word{n}" for n in range(100))
    database.execute(
        "SELECT inturn.fail('orders', c.key, c.epoch, c.seq, %s)"
        " FROM inturn.claim(topics => '{orders}', max_keys => 1, lease => '1 h', applier => 'a') c",
        [error],
    )
    says = database.value("SELECT says FROM inturn.why('orders', 'k')").partition("attempt 1 of 1: ")[2]
    note = Terminal(database.dsn, "keys").read().splitlines()[2].strip()
    for cut, end in ((says, "..."), (note, "…")):
        assert cut.endswith(end)
        kept = cut.removesuffix(end)
        assert len(kept) > 50
        assert error.startswith(kept + " ")
    # One word without an end is cut all the same.
    assert database.value("SELECT inturn._shorten(repeat('x', 500), 100)") == "x" * 97 + "..."


def test_a_topic_that_sql_cannot_apply_is_refused_with_the_command_that_can(database: Database) -> None:
    database.execute("SELECT inturn.create_topic('calls', 'http://b.internal/')")
    database.execute("SELECT inturn.create_topic('mails')")
    served = {"calls": "Apply it with: inturn apply --topic calls", "mails": "--app MODULE:APPLIER"}
    for topic, hint in served.items():
        found = refusal(database, f"CALL inturn.apply(ARRAY['{topic}'])")
        assert found.sqlstate == "IT012"
        assert hint in (found.hint or "")
