"""The alert rules, the dashboard and the reference: they name metrics that there are, and all of them."""

from __future__ import annotations

import json
import re

from support.database import Database
from support.monitoring import (
    DASHBOARD,
    SCENES,
    alerts,
    expressions,
    minutes_of_range,
    panel_queries,
    rule_queries,
    samples,
    unit_tests,
)
from support.place import DOCS, ROOT
from support.promql import found

from inturn.applier.metrics import tallies
from inturn.applier.metrics.families import BY_NAME, FAMILIES, Family, family_of

REFERENCE = DOCS / "reference" / "metrics.md"
_METRIC = re.compile(r"\binturn_\w+")
_LABELS = re.compile(r"\b(inturn_\w+)\{([^}]*)\}")


def series_of(family: Family) -> set[str]:
    """Return what the samples of a family are called."""
    ends = {
        "counter": ("_total",),
        "histogram": ("_bucket", "_count", "_sum"),
        "info": ("_info",),
        "gauge": ("",),
    }
    return {family.name + end for end in ends[family.kind]}


ALL = {name: family for family in FAMILIES for name in series_of(family)}


def test_every_query_names_metrics_and_labels_that_there_are() -> None:
    for where, query in expressions().items():
        named = set(_METRIC.findall(query))
        assert named, where
        assert named - ALL.keys() == set(), where
        for name, matchers in _LABELS.findall(query):
            labels = set(re.findall(r"(\w+)=", matchers))
            assert labels <= {*ALL[name].labels, "le", "job"}, where
        for labels in re.findall(r"(?:by|on) \(([^)]*)\)", query):
            there = {label for name in named for label in ALL[name].labels} | {"le", "job"}
            assert set(re.split(r", *", labels)) <= there, where


def test_queries_of_the_database_take_one_of_many_instances() -> None:
    """Every applier says the same of the database: a sum would count it as often as there are appliers."""
    for where, query in expressions().items():
        for name in _METRIC.findall(query):
            if ALL[name].by in {"topics", "server"}:
                before = query[: query.index(name)]
                assert re.search(r"(?:max|min)(?: by \([^)]*\))? ?\((?:rate\()?$", before), (where, name)
            elif ALL[name].by == "process":
                assert "sum" in query, where


def test_no_query_mixes_two_databases() -> None:
    """Each has a job of its own: what one has must not hide what the other lacks."""
    for where, query in panel_queries().items():
        assert query.count('{job="$job"') == len(_METRIC.findall(query)), where
    for where, query in rule_queries().items():
        grouped = re.findall(r"\b(?:by|on) \((\w+)", query)
        assert grouped, where
        assert set(grouped) == {"job"}, where
        for name in set(_METRIC.findall(query)):
            without = re.sub(rf"absent\((?:max_over_time\()?{name}\b", "", query)
            assert re.search(rf"by \(job[^)]*\) \([^)]*{name}\b", without), (where, name)


def test_the_dashboard_shows_every_metric_but_of_single_keys() -> None:
    shown = {name for query in panel_queries().values() for name in _METRIC.findall(query)}
    left_out = {"inturn_schema", "inturn_counts_exact", "inturn_table_live_rows"}
    for family in FAMILIES:
        assert bool(shown & series_of(family)) == (family.by != "keys" and family.name not in left_out), (
            family.name
        )
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(target["refId"] for panel in panels for target in panel["targets"])


def test_every_alert_has_a_scene_and_says_what_to_do() -> None:
    assert SCENES.keys() == alerts().keys()
    for name, text in alerts().items():
        assert re.search(r"severity: (critical|warning)\}", text), name
        assert "summary:" in text, name
        assert "description:" in text, name
    for test in unit_tests("rules")["tests"]:
        fired = [bool(case["exp_alerts"]) for case in test["alert_rule_test"]]
        assert fired == [False, True, False]


def test_the_rules_find_in_their_scenes_what_promtool_finds_there() -> None:
    """By the tests' own reading of PromQL, by which the year judges; promtool's is in test_prometheus.py."""
    for name, query in rule_queries().items():
        for scene in SCENES[name]:
            for minute, labels in ((scene.fires, [scene.labels]), (scene.clear, [])):
                before = samples(scene, max(minute - minutes_of_range(query), 0))
                assert found(query, before, samples(scene, minute)) == labels, (name, minute)


def test_the_database_says_what_the_table_of_families_says(database: Database) -> None:
    database.execute("SELECT inturn.create_topic('orders')")
    for by in ("topics", "server"):
        function = {"topics": "topic_metrics", "server": "server_metrics"}[by]
        rows = database.execute(f"SELECT DISTINCT metric, labels FROM inturn.{function}()")
        assert {family_of(name).name for name, _ in rows} == {f.name for f in FAMILIES if f.by == by}
        for name, labels in rows:
            assert set(labels) == set(family_of(name).labels), name
            assert name in series_of(family_of(name))


def test_processes_count_what_the_table_of_families_says() -> None:
    counted = {
        *(tallies.COMMANDS, tallies.TURNS, tallies.EMPTY_TURNS, tallies.CLAIMS, tallies.LOST_LEASES),
        *(tallies.WAIT, tallies.HANDLER),
    }
    assert counted == {family.name for family in FAMILIES if family.by == "process"}


def test_the_reference_has_every_metric_and_every_alert() -> None:
    text = REFERENCE.read_text()
    rows = re.findall(r"^\| `(inturn_\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", text, re.MULTILINE)
    assert {name: (kind, labels, says) for name, kind, labels, says in rows} == {
        family.name: (family.kind, ", ".join(f"`{label}`" for label in family.labels), family.help)
        for family in BY_NAME.values()
    }
    assert set(re.findall(r"^\| `(Inturn\w+)` \|", text, re.MULTILINE)) == alerts().keys()


def test_ci_installs_prometheus() -> None:
    assert "prometheus" in (ROOT / ".ci" / "run").read_text()
