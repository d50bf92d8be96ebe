"""A real Prometheus, Debian's: its promtool checks the rules, and it scrapes a running fleet."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.database import Database, until
from support.monitoring import RULES, expressions, unit_tests, without_annotations
from support.process import inturn_apply
from support.scrape import get, metrics_port
from support.shop import TOPIC, append, open_shop

#: For what a busy machine may take: several scrapes and evaluations, a second each.
PATIENCE = 100.0


def promtool(*args: str | Path, input: str | None = None) -> str:  # noqa: A002
    done = subprocess.run(
        ["promtool", *args], input=input, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_promtool_accepts_the_rules() -> None:
    assert "12 rules found" in promtool("check", "rules", RULES)


def test_every_alert_fires_and_clears_in_its_scene(tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(without_annotations(RULES.read_text()))
    (tmp_path / "tests.yml").write_text(json.dumps(unit_tests("rules.yml")))
    assert "SUCCESS" in promtool("test", "rules", tmp_path / "tests.yml")


def test_promtool_has_nothing_against_the_metrics(database: Database) -> None:
    open_shop(database)
    append(database, "a", "insert")
    with inturn_apply(database.dsn, "--metrics-port", "0") as process:
        text, _ = get(metrics_port(process), accept="*/*")
    promtool("check", "metrics", input=text)


@contextmanager
def prometheus(folder: Path, port: int) -> Iterator[int]:
    """Run a Prometheus that scrapes a port; its alerts wait for nothing. Give its own port."""
    rules = re.sub(r"for: \w+", "for: 0s", RULES.read_text())
    (folder / "rules.yml").write_text(re.sub(r"\[\d+m\]", "[20s]", rules))
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 3s, evaluation_interval: 1s, scrape_timeout: 3s}\n"
        "rule_files: [rules.yml]\n"
        f"scrape_configs: [{{job_name: inturn, static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}]\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as probe:
        own = int(probe.getsockname()[1])
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{own}",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            yield own
        finally:
            process.terminate()
            process.wait(30)


def ask(port: int, path: str) -> Any:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{path}", timeout=30) as answer:
            return json.load(answer)["data"]
    except OSError:
        return None  # it is not up yet


def firing(port: int) -> set[tuple[str, str]]:
    found = ask(port, "alerts")
    return {
        (alert["labels"]["alertname"], alert["labels"].get("topic") or alert["labels"].get("holder", ""))
        for alert in (found or {"alerts": []})["alerts"]
        if alert["state"] == "firing"
    }


def fires(port: int, name: str, of: str) -> None:
    until(lambda: (name, of) in firing(port), f"{name} fires", PATIENCE)


def clears(port: int, name: str, of: str) -> None:
    until(lambda: (name, of) not in firing(port), f"{name} clears", PATIENCE)


def test_a_real_prometheus_scrapes_a_fleet_and_its_alerts_fire_and_clear(
    database: Database, tmp_path: Path
) -> None:
    open_shop(database, settings="max_attempts => 1")
    # Served by nobody, since the fleet has no handlers for it.
    database.execute("SELECT inturn.create_topic('alone')")
    with (
        inturn_apply(database.dsn, "--metrics-port", "0", "--workers", "2") as fleet,
        prometheus(tmp_path, metrics_port(fleet)) as port,
    ):
        until(
            lambda: (found := ask(port, "targets")) and found["activeTargets"], "it knows the fleet", PATIENCE
        )
        append(database, "bad", "fail")
        database.execute("SELECT inturn.append('alone', 'a', 'insert')")
        database.execute("UPDATE inturn.ticket SET ready_at = now() - interval '1 h' WHERE topic = 'alone'")
        fires(port, "InturnKeysHeld", TOPIC)
        fires(port, "InturnNoApplier", "alone")
        database.execute("SELECT inturn.cancel_rest('shop', 'bad', 'a test')")
        database.execute("SELECT inturn.pause_topic('alone', 'a test')")
        clears(port, "InturnKeysHeld", TOPIC)
        clears(port, "InturnNoApplier", "alone")
        database.execute(
            "SELECT inturn.announce_applier('h:1:1', '{alone}', 'h', 1, '0001', true,"
            """ '{"alone": {"seconds": 1, "key": "a", "error": "down"}}', 2)"""
        )
        fires(port, "InturnTargetDown", "alone")
        database.execute("DELETE FROM inturn.applier WHERE applier = 'h:1:1'")
        clears(port, "InturnTargetDown", "alone")
        # Every query of the rules and of the dashboard can be evaluated.
        for where, query in expressions().items():
            asked = query.replace("$__rate_interval", "1m").replace("$topic", ".*").replace("$job", "inturn")
            quoted = urllib.request.quote(asked)  # type: ignore[attr-defined]
            assert ask(port, f"query?query={quoted}") is not None, where
        applied = urllib.request.quote(  # type: ignore[attr-defined]
            'sum(inturn_applier_commands_total{outcome="failed"})'
        )
        assert ask(port, f"query?query={applied}")["result"][0]["value"][1] == "1"
