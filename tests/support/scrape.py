"""Scrapes of the metrics port of `inturn apply`, read by prometheus_client's own parser."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Mapping
from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families

from support.database import until
from support.process import InturnProcess

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def read(text: str) -> Samples:
    """Return the value of each sample; the parser refuses what is not OpenMetrics."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        for sample in family.samples
    }


def sample(samples: Samples, name: str, **labels: str) -> float | None:
    """Return the value of a sample; None: there is none."""
    return samples.get((name, frozenset(labels.items())))


def metrics_port(process: InturnProcess) -> int:
    """Return at which port a process that was started with --metrics-port 0 serves, once it says so."""
    found = until(lambda: re.search(r"serving metrics at http://\S+?:(\d+)/metrics", process.err), "its port")
    return int(found[1])


def get(port: int, path: str = "/metrics", *, accept: str = OPENMETRICS) -> tuple[str, Mapping[str, Any]]:
    """Return what the port answers, and the headers."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode(), answer.headers


def scrape(port: int) -> Samples:
    return read(get(port)[0])
