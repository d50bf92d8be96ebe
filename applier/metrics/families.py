"""The families of metrics: the one table of what each is called, of what kind it is, and what it says."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

Kind: TypeAlias = Literal["gauge", "counter", "histogram", "info"]


class Family(NamedTuple):
    """A family of metrics.

    Attributes:
        name: without the `_total` of a counter and the `_info` of an info.
        labels: those of its samples.
        by: who says it: topics and server, the database by topic_metrics and server_metrics; keys, the
            database where it was asked for; process, an applier's process; scrape, whoever answers.
    """

    name: str
    kind: Kind
    by: Literal["topics", "server", "keys", "process", "scrape"]
    labels: tuple[str, ...]
    help: str

    @property
    def unit(self) -> str:
        """As OpenMetrics has it: the name ends with it."""
        return next((unit for unit in ("seconds", "bytes") if self.name.endswith(f"_{unit}")), "")


_TOPIC, _TABLE, _KEY = ("topic",), ("table",), ("topic", "key", "state")

FAMILIES = (
    Family("inturn_keys", "gauge", "topics", ("topic", "state"), "Keys by state; idle keys are not counted."),
    Family(
        "inturn_pending_commands",
        "gauge",
        "topics",
        _TOPIC,
        "Commands not applied yet; a lower bound where counts are not exact.",
    ),
    Family(
        "inturn_arrived_commands",
        "gauge",
        "topics",
        _TOPIC,
        "Pending commands that have no number yet.",
    ),
    Family(
        "inturn_oldest_pending_age_seconds",
        "gauge",
        "topics",
        _TOPIC,
        "Age of the oldest pending command; 0 if there is none.",
    ),
    Family(
        "inturn_oldest_ready_age_seconds",
        "gauge",
        "topics",
        _TOPIC,
        "How long the first key has been ready and not taken; 0 if there is none.",
    ),
    Family(
        "inturn_oldest_arrived_age_seconds",
        "gauge",
        "topics",
        _TOPIC,
        "Age of the first command that has no number yet; 0 if there is none.",
    ),
    Family(
        "inturn_counts_exact",
        "gauge",
        "topics",
        _TOPIC,
        "1 if keys and pending commands were counted, 0 if they are estimated.",
    ),
    Family("inturn_topic_paused", "gauge", "topics", _TOPIC, "1 while the topic is paused."),
    Family("inturn_appliers", "gauge", "topics", _TOPIC, "Living workers that serve the topic."),
    Family(
        "inturn_breakers_open",
        "gauge",
        "topics",
        _TOPIC,
        "Living processes for which the topic's target is down.",
    ),
    Family("inturn_table_size_bytes", "gauge", "server", _TABLE, "Size of a table, its indexes and TOAST."),
    Family(
        "inturn_table_live_rows",
        "gauge",
        "server",
        _TABLE,
        "Rows of a table, as PostgreSQL's statistics estimate them.",
    ),
    Family(
        "inturn_table_dead_rows",
        "gauge",
        "server",
        _TABLE,
        "Dead rows of a table, as PostgreSQL's statistics estimate them.",
    ),
    Family(
        "inturn_appended_commands", "counter", "server", (), "Commands appended, those rolled back included."
    ),
    Family(
        "inturn_recorded_turns",
        "counter",
        "server",
        (),
        "Turns recorded by whatever applier, those rolled back included.",
    ),
    Family(
        "inturn_oldest_snapshot_age_transactions",
        "gauge",
        "server",
        ("holder",),
        "Age of the oldest snapshot that keeps dead rows.",
    ),
    Family(
        "inturn_oldest_snapshot_age_seconds",
        "gauge",
        "server",
        ("holder",),
        "Age of the oldest transaction that keeps dead rows.",
    ),
    Family(
        "inturn_abandoned_handlers",
        "gauge",
        "server",
        (),
        "Handlers abandoned by living processes, because they did not return.",
    ),
    Family("inturn_schema", "info", "server", ("revision",), "The revision of the schema."),
    Family(
        "inturn_key_pending_commands", "gauge", "keys", _KEY, "Pending commands of one of the worst keys."
    ),
    Family(
        "inturn_key_oldest_pending_age_seconds",
        "gauge",
        "keys",
        _KEY,
        "Age of the oldest pending command of one of the worst keys.",
    ),
    Family(
        "inturn_applier_commands",
        "counter",
        "process",
        ("topic", "outcome"),
        "Commands applied, failed (each attempt) and skipped by this process.",
    ),
    Family("inturn_applier_turns", "counter", "process", _TOPIC, "Turns that this process took."),
    Family("inturn_applier_empty_turns", "counter", "process", _TOPIC, "Turns that found nothing to apply."),
    Family("inturn_applier_claims", "counter", "process", _TOPIC, "Claims that found ready keys."),
    Family(
        "inturn_applier_lost_leases",
        "counter",
        "process",
        _TOPIC,
        "Leases of work outside the database that were gone before their turn ended.",
    ),
    Family(
        "inturn_applier_wait_seconds",
        "histogram",
        "process",
        _TOPIC,
        "From the append of a command to the start of its handler, first attempts only.",
    ),
    Family(
        "inturn_applier_handler_seconds",
        "histogram",
        "process",
        _TOPIC,
        "How long handlers took, the failed ones included.",
    ),
    Family(
        "inturn_scrape_success",
        "gauge",
        "scrape",
        ("part",),
        "1 if this part of the scrape could be read from the database.",
    ),
    Family(
        "inturn_scrape_duration_seconds",
        "gauge",
        "scrape",
        (),
        "How long the database took to answer this scrape.",
    ),
)

BY_NAME = {family.name: family for family in FAMILIES}


def family_of(metric: str) -> Family:
    """Return the family of a sample that the database gave."""
    return BY_NAME[metric.removesuffix("_total").removesuffix("_info")]
