"""Exposition: metrics as text, by prometheus_client: the extra `metrics`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import exposition
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from inturn.applier.metrics.families import BY_NAME, FAMILIES, Family, family_of
from inturn.applier.metrics.reading import Reading
from inturn.applier.metrics.tallies import BOUNDS, Place, Snapshot, Span

OPENMETRICS, OLDER = "application/openmetrics-text", ""
#: What an escape in a label begins with.
_ESCAPE = re.compile(r"\\[\\rtuUx]")


class _Found(Collector):
    """What a registry would collect."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def form_of(accept: str) -> str:
    """Return which of two forms is served to the header Accept: OPENMETRICS, or Prometheus's older one."""
    try:
        _, content_type = exposition.choose_encoder(accept)
    except (TypeError, ValueError):  # at a version that is not a number
        return OLDER
    return OPENMETRICS if content_type.startswith(OPENMETRICS) else OLDER


def expose(reading: Reading, counted: Snapshot | None, form: str) -> tuple[bytes, str]:
    """Return the text of a scrape, and its content type.

    Args:
        counted: by appliers of this process and those that it has started; None: there are none.
        form: as form_of gives it.
    """
    encode, content_type = exposition.choose_encoder(form)
    return encode(_Found(families(reading, counted))), content_type


def openmetrics(reading: Reading) -> str:
    """Return what the database said as OpenMetrics."""
    return expose(reading, None, OPENMETRICS)[0].decode()


def plain(reading: Reading) -> str:
    """Return the same in Prometheus's older text format, for node_exporter's textfile collector."""
    return expose(reading, None, OLDER)[0].decode()


def families(reading: Reading, counted: Snapshot | None) -> Iterator[Metric]:
    """Yield the families with samples, in the order of their table."""
    found: dict[str, Metric] = {}
    for sample in reading.samples:
        family = family_of(sample.metric)
        _metric(found, family).add_sample(sample.metric, _plain(sample.labels), float(sample.value))
    for part, success in reading.success.items():
        _metric(found, BY_NAME["inturn_scrape_success"]).add_sample(
            "inturn_scrape_success", {"part": part}, float(success)
        )
    _metric(found, BY_NAME["inturn_scrape_duration_seconds"]).add_sample(
        "inturn_scrape_duration_seconds", {}, reading.seconds
    )
    if counted is not None:
        for place, count in counted.counts.items():
            _metric(found, BY_NAME[place.family]).add_sample(f"{place.family}_total", _labels(place), count)
        for place, span in counted.spans.items():
            _add_histogram(_metric(found, BY_NAME[place.family]), place, span)
    return (found[family.name] for family in FAMILIES if family.name in found)


def _metric(found: dict[str, Metric], family: Family) -> Metric:
    return found.setdefault(family.name, Metric(family.name, family.help, family.kind, family.unit))


def _labels(place: Place) -> dict[str, str]:
    return _plain({"topic": place.topic} | ({"outcome": place.outcome} if place.outcome else {}))


def _plain(labels: Mapping[str, str]) -> dict[str, str]:
    """Return labels of which no terminal obeys a value: what cannot be printed is written as an escape.

    No two values are written alike: in one that looks like that, backslashes are escaped too. The format has
    an escape for the end of a line.
    """
    return {name: _plain_value(value) for name, value in labels.items()}


def _plain_value(value: str) -> str:
    if value.replace("\n", "").isprintable() and not _ESCAPE.search(value):
        return value
    return "".join(c if c == "\n" or (c.isprintable() and c != "\\") else repr(c)[1:-1] for c in value)


def _add_histogram(metric: Metric, place: Place, span: Span) -> None:
    sofar, labels = 0, _labels(place)
    for bound, count in zip([*map(str, BOUNDS), "+Inf"], span.counts, strict=True):
        sofar += count
        metric.add_sample(f"{place.family}_bucket", labels | {"le": bound}, sofar)
    metric.add_sample(f"{place.family}_count", labels, sofar)
    metric.add_sample(f"{place.family}_sum", labels, span.total)
