"""The topics: whether somebody serves each, and whether its target is there."""

from __future__ import annotations

from collections.abc import Iterator

from inturn.cli.doctor.finding import Facts, Finding
from inturn.cli.look.why import fill
from inturn.cli.terminal.key_text import shown_topic
from inturn.cli.terminal.output import age

#: How many seconds a key may be ready, or a command have no number, while nobody serves the topic: cron may
#: come by every minute. The alert InturnNoApplier is about the same two.
READY_SECONDS = 120


def appliers(facts: Facts) -> Iterator[Finding]:
    for row in facts.rows(
        """
        SELECT t.name, max(m.value) FILTER (WHERE m.metric = 'inturn_oldest_ready_age_seconds') AS ready,
            max(m.value) FILTER (WHERE m.metric = 'inturn_oldest_arrived_age_seconds') AS arrived,
            (SELECT split_part(k.to_run, E'\\n', 1) FROM {schema}._kind_of(t.target) k) AS to_run
        FROM {schema}.topic t JOIN {schema}.topic_metrics() m ON m.labels->>'topic' = t.name
        WHERE t.paused_at IS NULL OR clock_timestamp() >= t.paused_until
        GROUP BY t.name, t.target HAVING max(m.value) FILTER (WHERE m.metric = 'inturn_appliers') = 0
        ORDER BY t.name
        """
    ):
        topic, ready, arrived = shown_topic(row["name"]), float(row["ready"]), float(row["arrived"])
        start = f"Start one: {row['to_run'].replace('{topic}', topic)}"
        if max(ready, arrived) > READY_SECONDS:
            waits = f"a key of it has been ready for {age(ready)}"
            if arrived > ready:
                waits = f"a command that arrived {age(arrived)} ago has no number yet"
            yield Finding(
                "error",
                f"no applier of topic {topic} is alive, and {waits}",
                start,
            )
        elif not _known(facts, row["name"]):
            yield Finding(
                "warning",
                f"no applier has served topic {topic} in the last day",
                f"{start}; or, if the topic is not in use: inturn pause --topic {topic}",
            )


def targets(facts: Facts) -> Iterator[Finding]:
    for row in facts.rows(
        "SELECT topic, says, to_do, named,"
        " coalesce(has_function_privilege(%s, function, 'EXECUTE'), true) AS granted"
        " FROM {schema}._look_at_targets()",
        f"{facts.schema}_applier",
    ):
        topic = shown_topic(row["topic"])
        if row["to_do"] is not None:
            # As why advises it.
            lines = [line.partition("  # ") for line in row["to_do"].splitlines()]
            ways = "; or ".join(f"{who}: {fill(line, row['topic'], '')}" for line, _, who in lines)
            yield Finding("error", row["says"], f"{ways[:1].upper()}{ways[1:]}")
        elif row["says"] is not None:
            again = fill("inturn topic set --target sql:SCHEMA.FUNCTION {topic}", row["topic"], "")
            yield Finding("error", row["says"], f"Create it, or name another one: {again}")
        elif not row["granted"]:
            yield Finding(
                "warning",
                f"{facts.schema}_applier may not call {row['named']}, the target of topic {topic}",
                "Grant it, unless the appliers' logins have it otherwise",
                (f"GRANT EXECUTE ON FUNCTION {row['named']} TO {facts.schema}_applier",),
            )


def _known(facts: Facts, topic: str) -> bool:
    return bool(
        facts.rows("SELECT 1 AS one FROM {schema}.list_appliers() a WHERE %s = ANY (a.topics)", topic)
    )
