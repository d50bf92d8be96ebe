"""A real Prometheus, Debian's: its promtool checks the rules, and it scrapes a running fleet."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from support.alarms import WRONG, Alarms
from support.database import Database, until
from support.monitoring import (
    RULES,
    alerts,
    panel_queries,
    rule_queries,
    shortened,
    unit_tests,
    without_annotations,
)
from support.place import DOCS
from support.process import inturn_apply
from support.scrape import get, metrics_port
from support.server import free_port
from support.shop import append, open_shop

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


def test_promtool_accepts_the_configuration_that_the_page_shows(tmp_path: Path) -> None:
    page = (DOCS / "how-to" / "watch-it.md").read_text()
    (shown,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "prometheus.yml").write_text(shown)
    (tmp_path / RULES.name).symlink_to(RULES)
    said = promtool("check", "config", tmp_path / "prometheus.yml")
    assert "1 rule files found" in said
    assert "12 rules found" in said


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


#: What an alert is about, apart from its job.
_LABELS = ("topic", "holder", "table", "part")
_HIDDEN, _GONE = ("InturnScrapeFailing", "topics"), ("InturnNotScraped", "")
_FIRED = f'max by (alertname, {", ".join(_LABELS)}) (max_over_time(ALERTS{{alertstate="firing"}}[1h]))'


@contextmanager
def prometheus(folder: Path, port: int) -> Iterator[int]:
    """Run a Prometheus that scrapes a port, with the rules, whose times are shorter. Give its own port."""
    (folder / "rules.yml").write_text(shortened(RULES.read_text()))
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 250ms, scrape_timeout: 1s}\n"
        "rule_files: [rules.yml]\n"
        f"scrape_configs: [{{job_name: inturn, static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}]\n"
    )
    own = free_port()
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
        return None  # it is not up yet, or refuses


def query(port: int, promql: str) -> list[dict[str, Any]]:
    answer = ask(port, f"query?query={quote(promql)}")
    assert answer is not None, promql
    found: list[dict[str, Any]] = answer["result"]
    return found


def _named(labels: dict[str, str]) -> tuple[str, str]:
    return labels["alertname"], next((labels[label] for label in _LABELS if label in labels), "")


def firing(port: int) -> set[tuple[str, str]]:
    found = ask(port, "alerts")["alerts"]
    return {_named(alert["labels"]) for alert in found if alert["state"] == "firing"}


def have_fired(port: int) -> set[tuple[str, str]]:
    """Return the alerts that have fired at some time: one may be over before somebody looks."""
    return {_named(series["metric"]) for series in query(port, _FIRED)}


def wait_fired(port: int, expected: set[tuple[str, str]]) -> None:
    try:
        until(lambda: have_fired(port) >= expected, "they fire", PATIENCE)
    except AssertionError as error:
        error.add_note(f"not fired: {expected - have_fired(port)}")
        raise


def wait_clear(port: int, expected: set[tuple[str, str]]) -> None:
    try:
        until(lambda: not firing(port) & expected, "they clear", PATIENCE)
    except AssertionError as error:
        error.add_note(f"still firing: {firing(port) & expected}")
        raise


@pytest.mark.long
def test_every_alert_fires_and_clears_in_a_real_prometheus_that_scrapes_a_fleet(
    database: Database, tmp_path: Path
) -> None:
    assert {name for name, _ in {*WRONG, _HIDDEN, _GONE}} == alerts().keys()
    with Alarms(database, tmp_path) as alarms, prometheus(tmp_path, alarms.port) as port:
        until(lambda: ask(port, "query?query=up") and query(port, "up == 1"), "it scrapes", PATIENCE)
        until(lambda: not firing(port), "nothing is wrong", PATIENCE)
        assert not have_fired(port) & WRONG
        alarms.go_wrong()
        wait_fired(port, WRONG)
        _check_dashboard(port)
        # By several looks, here and below: a scrape that is cut off takes its figures with it.
        failed = 'sum(inturn_applier_commands_total{topic="held", outcome="failed"}) == 1'
        until(lambda: query(port, failed), "one failure is counted", PATIENCE)
        alarms.put_right()
        # A thread that was left behind is, until its process ends.
        wait_clear(port, WRONG - {("InturnHandlersAbandoned", "")})
        alarms.hide_topics()
        until(lambda: _HIDDEN in firing(port), "a scrape without topics", PATIENCE)
        alarms.show_topics()
        until(lambda: firing(port) == {("InturnHandlersAbandoned", "")}, "the topics again", PATIENCE)
        alarms.kill_fleet()
        until(lambda: _GONE in firing(port), "nobody answers", PATIENCE)
        alarms.start_fleet()
        until(lambda: not firing(port), "all is well", PATIENCE)
        until(lambda: query(port, "up == 1"), "it scrapes again", PATIENCE)


def _check_dashboard(port: int) -> None:
    """Make sure that every query gives something, now that everything that it may show is there."""
    for where, promql in panel_queries().items():
        asked = promql.replace("$__rate_interval", "1m").replace("$topic", ".*").replace("$job", "inturn")
        until(partial(query, port, asked), where, PATIENCE)
    for promql in rule_queries().values():
        query(port, promql)
