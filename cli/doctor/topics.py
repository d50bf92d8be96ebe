"""The topics: whether somebody serves each, and whether its target is there."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import psycopg

from inturn.cli.doctor.finding import Facts, Finding
from inturn.cli.errors import explain
from inturn.cli.terminal.key_text import shown, shown_topic
from inturn.cli.terminal.output import age
from inturn.schema.errors import OwnerChanged

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
    hidden = yield from _hidden(facts)
    for row in facts.rows("SELECT name FROM {schema}.topic t WHERE t.merges ORDER BY name"):
        if row["name"] in hidden:
            continue
        try:
            facts.rows(
                "SELECT {schema}._require_merges(t)::text AS one FROM {schema}.topic t WHERE t.name = %s",
                row["name"],
            )
        except psycopg.Error as error:
            yield _refused(error, f"merge {shown(row['name'])} FIRST THEN BECOMES")
    for row in facts.rows(
        "SELECT name FROM {schema}.topic WHERE {schema}._function_name(target) IS NOT NULL ORDER BY name"
    ):
        if row["name"] not in hidden:
            yield from _target(facts, row["name"])


def _hidden(facts: Facts) -> Generator[Finding, None, set[str]]:
    """Find the topics whose functions are in schemas that this login may not look into; return their names.

    To it they are as good as gone.
    """
    rows = facts.rows(
        """
        SELECT quote_ident(n.nspname) AS hidden, array_agg(DISTINCT c.topic ORDER BY c.topic) AS topics
        FROM (SELECT t.name, {schema}._function_name(t.target) FROM {schema}.topic t
              UNION ALL
              SELECT r.topic, {schema}._function_name(r.becomes) FROM {schema}.merge_rule r
        ) c (topic, function)
        JOIN pg_namespace n ON starts_with(c.function, quote_ident(n.nspname) || '.')
                            OR starts_with(lower(c.function), quote_ident(n.nspname) || '.')
        WHERE NOT has_schema_privilege(n.oid, 'USAGE') GROUP BY n.nspname ORDER BY n.nspname
        """
    )
    for row in rows:
        yield Finding(
            "warning",
            f"this login may not look into schema {row['hidden']}: functions there, of"
            f" {', '.join(f'topic {shown(name)}' for name in row['topics'])}, are not examined",
            "Let operators look, or run the doctor as the schema's owner",
            (f"GRANT USAGE ON SCHEMA {row['hidden']} TO {facts.schema}_operator",),
        )
    return {name for row in rows for name in row["topics"]}


def _target(facts: Facts, topic: str) -> Iterator[Finding]:
    try:
        found = facts.rows(
            "SELECT f.target::text AS function, has_function_privilege(%s, f.target, 'EXECUTE') AS granted"
            " FROM {schema}.topic t CROSS JOIN LATERAL {schema}._trusted_target(t) f (target)"
            " WHERE t.name = %s",
            f"{facts.schema}_applier",
            topic,
        )
    except psycopg.Error as error:
        yield _refused(error, f"set {shown(topic)} --target sql:SCHEMA.FUNCTION")
        return
    if not found[0]["granted"]:
        function = found[0]["function"]
        yield Finding(
            "warning",
            f"{facts.schema}_applier may not call {function}, the target of topic {shown(topic)}",
            "Grant it, unless the appliers' logins have it otherwise",
            (f"GRANT EXECUTE ON FUNCTION {function} TO {facts.schema}_applier",),
        )


def _refused(error: psycopg.Error, again: str) -> Finding:
    """Return the finding for a function that is not called: a topic's target, or that of a merge rule.

    Args:
        error: what its call was refused with.
        again: how `inturn topic` names another function.
    """
    says, _, remedy = explain(error)[0].partition(". ")
    if error.sqlstate == OwnerChanged.sqlstate:
        return Finding("error", says, remedy)
    return Finding("error", says, f"Create it, or name another one: inturn topic {again}")


def _known(facts: Facts, topic: str) -> bool:
    return bool(
        facts.rows("SELECT 1 AS one FROM {schema}.list_appliers() a WHERE %s = ANY (a.topics)", topic)
    )
