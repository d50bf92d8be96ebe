"""What the database says of itself to a scrape of metrics."""

from __future__ import annotations

from typing import NamedTuple

from inturn.applier.calls.call import Call, all_as, nothing, statement


class Sample(NamedTuple):
    """One value of a metric."""

    metric: str
    labels: dict[str, str]
    value: float


def topic_metrics(schema: str) -> Call[list[Sample]]:
    return Call(
        statement("SELECT metric, labels, value FROM {schema}.topic_metrics()", schema), (), all_as(Sample)
    )


def server_metrics(schema: str) -> Call[list[Sample]]:
    return Call(
        statement("SELECT metric, labels, value FROM {schema}.server_metrics()", schema), (), all_as(Sample)
    )


def worst_keys(schema: str, count: int) -> Call[list[Sample]]:
    """Return the call that says of the worst keys, by name, what is pending and since when."""
    return Call(
        statement(
            "SELECT v.metric, jsonb_build_object('topic', k.topic, 'key', k.key, 'state', k.state), v.value"
            " FROM {schema}.list_keys(NULL, 'held,waiting,retrying,ready', %s) k CROSS JOIN LATERAL (VALUES"
            " ('inturn_key_pending_commands', k.pending::float8), ('inturn_key_oldest_pending_age_seconds',"
            " coalesce(extract(epoch FROM clock_timestamp() - k.oldest_pending_at), 0))) v (metric, value)",
            schema,
        ),
        (count,),
        all_as(Sample),
    )


def limit(seconds: float) -> Call[None]:
    """Return the call that limits every statement of this transaction, and its waits for locks."""
    milliseconds = str(max(int(seconds * 1000), 1))
    return Call(
        statement(
            "SELECT set_config('statement_timeout', %s, true), set_config('lock_timeout', %s, true),"
            " set_config('max_parallel_workers_per_gather', '0', true)"
        ),
        (milliseconds, milliseconds),
        nothing,
    )
