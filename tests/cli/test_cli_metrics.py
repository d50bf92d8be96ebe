"""`inturn metrics`, and the metrics port of `inturn apply`."""

from __future__ import annotations

import re
import socket
import urllib.error

import pytest
from support.database import Database, until
from support.logins import login
from support.process import inturn_apply, run_inturn
from support.scrape import get, metrics_port, read, sample, scrape
from support.shop import TOPIC, append, open_shop

from inturn.applier.calls.metrics import Sample
from inturn.applier.metrics.exposition import openmetrics
from inturn.applier.metrics.families import FAMILIES
from inturn.applier.metrics.reading import Reading
from inturn.applier.metrics.server import MOST_CLIENTS

pytestmark = pytest.mark.server


@pytest.fixture
def shop(database: Database) -> Database:
    """The shop, whose commands fail for good at once."""
    return open_shop(database, settings="max_attempts => 1")


def wait_applied(port: int, count: int) -> None:
    until(
        lambda: (
            (sample(scrape(port), "inturn_applier_commands_total", topic=TOPIC, outcome="applied") or 0)
            >= count
        ),
        f"{count} applied",
    )


def test_it_prints_openmetrics(shop: Database) -> None:
    append(shop, "a", "insert", "insert")
    code, out, err = run_inturn(shop.dsn, "metrics")
    assert (code, err) == (0, "")
    samples = read(out)
    assert sample(samples, "inturn_keys", topic=TOPIC, state="ready") == 1
    assert sample(samples, "inturn_pending_commands", topic=TOPIC) == 2
    assert sample(samples, "inturn_schema_info", revision="0001") == 1
    assert (sample(samples, "inturn_appended_commands_total") or 0) >= 0
    assert "key=" not in out
    assert out.endswith("# EOF\n")
    # A unit is the end of its family's name, and said.
    assert "# UNIT inturn_table_size_bytes bytes\n" in out


def test_keys_are_named_only_where_that_is_asked_for(shop: Database) -> None:
    append(shop, "a", "insert", "insert")
    append(shop, 'odd "key"\n\\', "insert")
    code, out, _ = run_inturn(shop.dsn, "metrics", "--keys", "1")
    assert code == 0
    named = [labels for name, labels in read(out) if name == "inturn_key_pending_commands"]
    assert len(named) == 1
    _, out, _ = run_inturn(shop.dsn, "metrics", "--keys", "5")
    assert sample(read(out), "inturn_key_pending_commands", topic=TOPIC, key="a", state="ready") == 2
    assert (
        sample(read(out), "inturn_key_pending_commands", topic=TOPIC, key='odd "key"\n\\', state="ready") == 1
    )


def test_topics_that_differ_are_never_labelled_alike() -> None:
    """Also where one is called as another one is written."""
    names = ["a\x07", r"a\x07", r"a\\x07", "a\\", "a\n", r"a\n", "a\t", r"a\t", r"C:\abc"]
    said = openmetrics(Reading([Sample("inturn_appliers", {"topic": name}, 1.0) for name in names]))
    labels = [dict(labels)["topic"] for name, labels in read(said) if name == "inturn_appliers"]
    assert len(set(labels)) == len(names), labels
    assert {"a\\", "a\n", r"a\n", r"C:\abc", r"a\x07"} <= set(labels)  # unless one looks like an escape


def test_the_older_format_is_for_a_textfile_collector(shop: Database) -> None:
    code, out, _ = run_inturn(shop.dsn, "metrics", "--format", "text")
    assert code == 0
    assert "# TYPE inturn_appended_commands_total counter\n" in out
    assert "# EOF" not in out


def test_an_applier_may_read_metrics_but_for_the_names_of_keys(shop: Database) -> None:
    dsn = login(shop, "inturn_applier")
    assert run_inturn(dsn, "metrics")[0] == 0
    code, _, err = run_inturn(dsn, "metrics", "--keys", "1")
    assert code == 1
    assert "permission denied" in err
    assert "inturn_operator" in err


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_fleet_serves_what_it_counts_and_what_the_database_says(shop: Database, processes: str) -> None:
    for n in range(10):
        append(shop, f"k{n}", "insert", "insert")
    append(shop, "bad", "fail")
    append(shop, "unwanted", "skip")
    # Once what is committed is applied, turns of its key find nothing.
    caller = shop.session()
    caller.execute(f"SELECT inturn.append('{TOPIC}', 'k0', 'insert')")
    with inturn_apply(shop.dsn, "--metrics-port", "0", "--workers", "2", "--processes", processes) as process:
        port = metrics_port(process)
        wait_applied(port, 20)

        def counted(name: str, **labels: str) -> float | None:
            return sample(scrape(port), f"inturn_applier_{name}", topic=TOPIC, **labels)

        until(lambda: counted("commands_total", outcome="failed") == 1, "the failure")
        until(lambda: counted("commands_total", outcome="skipped") == 1, "the one that was skipped")
        until(lambda: (counted("empty_turns_total") or 0) >= 1, "a turn that found nothing")
        assert counted("commands_total", outcome="applied") == 20
        for histogram in ("wait_seconds", "handler_seconds"):
            assert counted(f"{histogram}_bucket", le="+Inf") == counted(f"{histogram}_count") == 22
        assert 0 < (counted("wait_seconds_sum") or 0) < 22 * 600
        assert (counted("turns_total") or 0) >= 11
        assert (counted("claims_total") or 0) >= 1
        # The database is asked before the process, and what it says is given again for a second.
        until(lambda: sample(scrape(port), "inturn_keys", topic=TOPIC, state="held") == 1, "the held key")
        until(
            lambda: sample(scrape(port), "inturn_appliers", topic=TOPIC) == 2 * int(processes), "its workers"
        )
        until(lambda: sample(scrape(port), "inturn_scrape_success", part="topics") == 1, "all of it")
        text, headers = get(port, accept="*/*")
        assert headers["Content-Type"].startswith("text/plain")
        assert "# TYPE inturn_keys gauge" in text
    caller.rollback()


def test_the_database_down_leaves_what_the_process_counts(shop: Database) -> None:
    append(shop, "a", "insert")
    with inturn_apply(shop.dsn, "--metrics-port", "0") as process:
        port = metrics_port(process)
        wait_applied(port, 1)
        shop.execute("REVOKE EXECUTE ON FUNCTION inturn.topic_metrics() FROM inturn_applier, inturn_operator")
        shop.execute("DROP FUNCTION inturn.topic_metrics()")

        def partly() -> bool:
            samples = scrape(port)
            return sample(samples, "inturn_scrape_success", part="topics") == 0

        until(partly, "the part that fails")
        samples = scrape(port)
        assert sample(samples, "inturn_scrape_success", part="server") == 1
        assert sample(samples, "inturn_keys", topic=TOPIC, state="held") is None
        assert sample(samples, "inturn_applier_commands_total", topic=TOPIC, outcome="applied") == 1
        assert process.running


def test_a_lock_on_our_tables_delays_a_scrape_and_no_more(shop: Database) -> None:
    with inturn_apply(shop.dsn, "--metrics-port", "0") as process:
        port = metrics_port(process)
        migration = shop.session()
        migration.execute("LOCK inturn.ticket IN ACCESS EXCLUSIVE MODE")
        samples = until(
            lambda: (
                (found := scrape(port))
                and sample(found, "inturn_scrape_success", part="topics") == 0
                and found
            ),
            "a scrape without the topics",
        )
        assert sample(samples, "inturn_schema_info", revision="0001") in {1, None}
        migration.rollback()
        until(lambda: sample(scrape(port), "inturn_scrape_success", part="topics") == 1, "all again")


def test_clients_that_say_nothing_are_turned_away_and_the_appliers_go_on(shop: Database) -> None:
    with inturn_apply(shop.dsn, "--metrics-port", "0") as process:
        port = metrics_port(process)
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(4 * MOST_CLIENTS)]
        for client in silent[::2]:
            client.sendall(b"GET /metrics HTTP/1.1\r\nX-Half: ")
        append(shop, "a", "insert")
        until(lambda: shop.value("SELECT count(*) FROM app.witness") == 1, "the command is applied")
        # Each is cut off after a while, and then there is room again.
        for client in silent:
            client.settimeout(60)
            while client.recv(4096):
                pass
            client.close()
        wait_applied(port, 1)
        assert process.running


@pytest.mark.parametrize(("path", "status"), [("/", 404), ("/metricsx", 404), ("/../etc/passwd", 404)])
def test_nothing_else_is_served(shop: Database, path: str, status: int) -> None:
    with inturn_apply(shop.dsn, "--metrics-port", "0") as process:
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(metrics_port(process), path)
        assert refused.value.code == status
        refused.value.close()


def test_it_listens_on_the_loopback_alone_unless_told(shop: Database) -> None:
    # Linux has the whole of 127.0.0.0/8: who listens everywhere is met at any of it.
    for more, meets, misses in (
        ((), "127.0.0.1", "127.0.0.2"),
        (("--metrics-host", "127.0.0.2"), "127.0.0.2", "127.0.0.1"),
    ):
        with inturn_apply(shop.dsn, "--metrics-port", "0", *more) as process:
            port = metrics_port(process)
            socket.create_connection((meets, port)).close()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((misses, port))


def test_an_address_that_was_left_empty_is_refused(shop: Database) -> None:
    """Sockets take it for all addresses."""
    code, _, err = run_inturn(
        shop.dsn,
        "apply",
        "--app",
        "support.shop:applier",
        "--drain",
        "--metrics-port",
        "0",
        "--metrics-host",
        "",
    )
    assert code == 2
    assert "0.0.0.0" in err


def test_a_port_that_is_taken_is_said_before_anything_is_applied(shop: Database) -> None:
    append(shop, "a", "insert")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = run_inturn(
            shop.dsn, "apply", "--app", "support.shop:applier", "--drain", "--metrics-port", str(port)
        )
    assert code == 1
    assert f"cannot serve metrics at 127.0.0.1, port {port}: Address already in use" in err
    assert shop.value("SELECT count(*) FROM app.witness") == 0


def test_every_family_is_named_as_prometheus_has_it() -> None:
    for family in FAMILIES:
        assert re.fullmatch(r"inturn_[a-z]+(_[a-z]+)*", family.name), family.name
        assert not family.name.endswith(("_total", "_info", "_count", "_sum", "_bucket")), family.name
        assert family.help.endswith("."), family.name
        if family.kind == "histogram":
            assert family.unit == "seconds", family.name
