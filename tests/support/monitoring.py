"""The alert rules and the dashboard in docs/monitoring, and scenes in which each alert fires and clears."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from support.place import DOCS
from support.scrape import Samples

RULES = DOCS / "monitoring" / "inturn.rules.yml"
DASHBOARD = DOCS / "monitoring" / "grafana-dashboard.json"

_ALERT = re.compile(r"- alert: (\w+)\n(.*?)(?=\n {6}- alert:|\Z)", re.DOTALL)


def alerts() -> dict[str, str]:
    """Return the text of each rule, by the name of its alert."""
    return dict(_ALERT.findall(RULES.read_text()))


def expressions() -> dict[str, str]:
    """Return every query of the rules and of the dashboard, by where it stands."""
    return rule_queries() | panel_queries()


def rule_queries() -> dict[str, str]:
    """Return the query of each rule, by the name of its alert."""
    found = {
        name: re.search(r"expr: (?:\|\n)?(.*?)\n {8}(?:for|labels):", text, re.DOTALL)
        for name, text in alerts().items()
    }
    queries = {name: match[1] for name, match in found.items() if match}
    assert queries.keys() == found.keys(), "a rule whose query was not found"
    return queries


def panel_queries() -> dict[str, str]:
    """Return every query of the dashboard, by its panel's title and its number there."""
    return {
        f"{panel['title']} {number}": target["expr"]
        for panel in json.loads(DASHBOARD.read_text())["panels"]
        for number, target in enumerate(panel["targets"])
    }


class Scene(NamedTuple):
    """Series a minute apart, and what becomes of an alert.

    Attributes:
        series: PromQL's notation of a series to its values.
        labels: of the alert that fires; it is the only one.
        quiet, fires, clear: minutes at which it does not fire yet, fires, and has cleared.
    """

    series: dict[str, str]
    labels: dict[str, str]
    quiet: int
    fires: int
    clear: int


def _of(topic: str, job: str = "", **values: str) -> dict[str, str]:
    labels = f'topic="{topic}", job="{job}", instance="a"'
    return {f"inturn_{name}{{{labels}}}": value for name, value in values.items()}


SCENES: dict[str, list[Scene]] = {
    "InturnNoApplier": [
        Scene(
            {
                **_of("t", oldest_ready_age_seconds="0 120x10 0x20", appliers="0x31", topic_paused="0x31"),
                **_of("paused", oldest_ready_age_seconds="120x31", appliers="0x31", topic_paused="1x31"),
                **_of("served", oldest_ready_age_seconds="120x31", appliers="1x31", topic_paused="0x31"),
            },
            {"topic": "t"},
            2,
            5,
            14,
        ),
        Scene(
            _of("hot", oldest_arrived_age_seconds="0 120x10 0x20", appliers="0x31", topic_paused="0x31"),
            {"topic": "hot"},
            2,
            5,
            14,
        ),
        # Of two databases whose topics have the same name, the one says nothing of the other.
        Scene(
            {
                **_of("t", "here", oldest_ready_age_seconds="0x31", appliers="2x31", topic_paused="1x31"),
                **_of(
                    "t", "b", oldest_ready_age_seconds="0 120x10 0x20", appliers="0x31", topic_paused="0x31"
                ),
            },
            {"topic": "t", "job": "b"},
            2,
            5,
            14,
        ),
    ],
    "InturnBehind": [
        Scene(
            {
                **_of("t", oldest_ready_age_seconds="0 400x10 0x20", appliers="2x31", topic_paused="0x31"),
                **_of("paused", oldest_ready_age_seconds="400x31", appliers="2x31", topic_paused="1x31"),
                **_of("nobody", oldest_ready_age_seconds="400x31", appliers="0x31", topic_paused="0x31"),
            },
            {"topic": "t"},
            4,
            8,
            14,
        ),
        # Appliers are alive, and none can number what has arrived.
        Scene(
            _of("hot", oldest_arrived_age_seconds="0 400x10 0x20", appliers="2x31", topic_paused="0x31"),
            {"topic": "hot"},
            4,
            8,
            14,
        ),
    ],
    "InturnKeysHeld": [
        Scene({'inturn_keys{topic="t", state="held"}': "0 1x10 0x20"}, {"topic": "t"}, 4, 8, 14)
    ],
    "InturnKeysWaiting": [
        Scene({'inturn_keys{topic="t", state="waiting"}': "0 1x20 0x20"}, {"topic": "t"}, 14, 18, 24)
    ],
    "InturnTargetDown": [Scene(_of("t", breakers_open="0 1x10 0x20"), {"topic": "t"}, 2, 5, 14)],
    "InturnFailing": [
        Scene(
            {
                'inturn_applier_commands_total{topic="t", outcome="failed"}': "0x5 1+20x14 281x20",
                'inturn_applier_commands_total{topic="t", outcome="applied"}': "0+100x40",
                'inturn_applier_commands_total{topic="well", outcome="failed"}': "0+5x40",
                'inturn_applier_commands_total{topic="well", outcome="applied"}': "0+100x40",
            },
            {"topic": "t"},
            6,
            16,
            30,
        )
    ],
    "InturnLeasesLost": [Scene(_of("t", applier_lost_leases_total="0x4 1x36"), {"topic": "t"}, 3, 6, 25)],
    "InturnHandlersAbandoned": [Scene({"inturn_abandoned_handlers": "0 2x10 0x20"}, {}, 4, 8, 14)],
    "InturnSnapshotHeld": [
        Scene(
            {
                'inturn_oldest_snapshot_age_seconds{holder="session"}': "0+120x14 0x20",
                'inturn_oldest_snapshot_age_seconds{holder="prepared"}': "0x40",
            },
            {"holder": "session"},
            7,
            10,
            18,
        ),
        Scene(
            {'inturn_oldest_snapshot_age_transactions{holder="slot"}': "0 20000000x10 0x20"},
            {"holder": "slot"},
            0,
            4,
            14,
        ),
    ],
    "InturnDeadRows": [
        Scene(
            {
                'inturn_table_dead_rows{table="turn"}': "0 5000000x40 10x20",
                'inturn_table_live_rows{table="turn"}': "1000000x60",
                'inturn_table_dead_rows{table="command_log"}': "5000000x60",
                'inturn_table_live_rows{table="command_log"}': "90000000x60",
            },
            {"table": "turn"},
            29,
            35,
            45,
        )
    ],
    "InturnScrapeFailing": [
        Scene({'inturn_scrape_success{part="topics"}': "1 0x10 1x20"}, {"part": "topics"}, 4, 8, 14)
    ],
    "InturnNotScraped": [
        Scene({'inturn_scrape_success{part="topics"}': "1x5 _x25 1x20"}, {}, 9, 18, 34),
        # Of two databases the one is scraped.
        Scene(
            {
                'inturn_scrape_success{part="topics", job="here"}': "1x60",
                'inturn_scrape_success{part="topics", job="b"}': "1x5 _x25 1x20",
            },
            {"job": "b"},
            9,
            18,
            34,
        ),
        # Nobody has ever been scraped.
        Scene({'inturn_scrape_success{part="topics"}': "_x15 1x20"}, {}, 4, 8, 18),
    ],
}


def samples(scene: Scene, minute: int) -> Samples:
    """Return what a look at a scene finds at a minute."""
    found = {}
    for series, values in scene.series.items():
        if (value := _values(values)[minute : minute + 1]) and value[0] is not None:
            labels = re.findall(r'(\w+)="([^"]*)"', series)
            found[series.partition("{")[0], frozenset(labels)] = value[0]
    return found


def _values(text: str) -> list[float | None]:
    """Return the values of a series, a minute apart, from PromQL's notation; None: it is not there then."""
    values: list[float | None] = []
    for part in text.split():
        first, step, times = re.fullmatch(r"(_|\d+)(?:\+(\d+))?(?:x(\d+))?", part).groups()  # type: ignore[union-attr]
        if first == "_":
            values += [None] * int(times or 1)
        else:  # and so many more
            values += [int(first) + int(step or 0) * number for number in range(int(times or 0) + 1)]
    return values


def minutes_of_range(query: str) -> int:
    """Return how far a query looks back."""
    found = re.findall(r"\[(\d+)([smhd])\]", query)
    return max((int(number) * _SECONDS[unit] // 60 for number, unit in found), default=0)


def unit_tests(rules: str) -> dict[str, Any]:
    """Return what `promtool test rules` is to check, for rules without annotations."""
    severity = {name: re.findall(r"severity: (\w+)", text)[0] for name, text in alerts().items()}
    return {
        "rule_files": [rules],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": s, "values": v} for s, v in scene.series.items()],
                "alert_rule_test": [
                    {
                        "eval_time": f"{minute}m",
                        "alertname": name,
                        "exp_alerts": [{"exp_labels": {"severity": severity[name], **scene.labels}}]
                        if minute == scene.fires
                        else [],
                    }
                    for minute in (scene.quiet, scene.fires, scene.clear)
                ],
            }
            for name, scenes in SCENES.items()
            for scene in scenes
        ],
    }


#: By how much a real Prometheus is given shorter times than the rules have. Of a range it has to see several
#: scrapes, so those are shortened by less; and numbers of rows and transactions are smaller.
SHORTER, SHORTER_RANGE, FEWER = 1200, 90, 1000
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def shortened(rules: str) -> str:
    """Return the rules with what takes minutes to fire and to clear in seconds."""

    def milliseconds(match: re.Match[str], by: int) -> str:
        return f"{int(match[1]) * _SECONDS[match[2]] * 1000 // by}ms"

    text = re.sub(r"(?<=for: )(\d+)([smhd])\b", lambda match: milliseconds(match, SHORTER), rules)
    text = re.sub(r"(?<=\[)(\d+)([smhd])(?=\])", lambda match: milliseconds(match, SHORTER_RANGE), text)
    text = re.sub(r"(?<=_seconds\) > )(\d+)", lambda match: str(int(match[1]) / SHORTER), text)
    return re.sub(r"\b(\d+)000\b", lambda match: str(int(match[0]) // FEWER), text)


def without_annotations(text: str) -> str:
    return re.sub(r"^ {8}annotations:\n(?: {10}.*\n)+", "", text, flags=re.MULTILINE)
