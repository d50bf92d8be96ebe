"""How long commands waited and handlers took, as metrics have it, against what the test itself measures.

A command is made to wait for an hour by its time in the log, and its handler by a gate that the test opens.
So a value is at least what was waited for, and at most that and the time that the whole test took: what
counts milliseconds, or from another moment on, is outside of both.
"""

from __future__ import annotations

import asyncio
import json
import time

import psycopg
from support import shop
from support.b_server import B, Gate, Post, say_ok
from support.database import Database, until
from support.scrape import Samples, read, sample

from inturn.applier import Applier, Command, Fleet
from inturn.applier.metrics.exposition import OPENMETRICS, expose
from inturn.applier.metrics.reading import Reading
from inturn.applier.metrics.tallies import Snapshot

HOUR, STANDS_SECONDS = 3600.0, 0.1
#: Topics whose handlers stand at a gate of the database, and those that do at one of the test.
IN_DATABASE, ELSEWHERE = ("shop", "batches", "sql", "sql-batches"), ("thread", "coroutine", "http")


def counted(fleet: Fleet) -> Samples:
    """Return what a scrape shows of the fleet, through the process that starts it and others."""
    told = Snapshot.from_json(json.loads(json.dumps(fleet.tallies.snapshot().as_json())))
    return read(expose(Reading(), told, OPENMETRICS)[0].decode())


def value(samples: Samples, topic: str, name: str, **labels: str) -> float:
    return sample(samples, f"inturn_applier_{name}", topic=topic, **labels) or 0.0


def wait_counted(fleet: Fleet, topic: str, outcome: str, count: int) -> None:
    until(
        lambda: value(counted(fleet), topic, "commands_total", outcome=outcome) == count,
        f"{count} {outcome} in {topic}",
    )


def wait_begun(fleet: Fleet, topic: str) -> Samples:
    """Wait until a topic has counters; return them."""
    until(
        lambda: sample(counted(fleet), "inturn_applier_turns_total", topic=topic) is not None,
        f"counters of {topic}",
    )
    return counted(fleet)


def open_topics(database: Database, url: str) -> None:
    shop.open_shop(database)
    for topic, target in {
        "batches": "python",
        "sql": "sql:app.apply",
        "sql-batches": "sql:app.apply_all",
        "thread": "python",
        "coroutine": "python",
        "http": url,
    }.items():
        database.execute("SELECT inturn.create_topic(%s, %s)", [topic, target])


def handlers_at(gates: dict[str, Gate]) -> Applier:
    """Return handlers of the topics; those of commands called `before` pass their topic's gate."""
    handlers = Applier()
    handlers.handler("shop")(shop.apply)
    handlers.batch_handler("batches")(shop.apply_all_of)

    @handlers.handler("thread", outside=True)
    def stand(command: Command) -> None:
        if command.name == "before":
            asyncio.run(gates["thread"].passed())

    @handlers.handler("coroutine", outside=True)
    async def stand_too(command: Command) -> None:
        if command.name == "before":
            await gates["coroutine"].passed()

    return handlers


def test_waits_and_handlers_are_counted_in_seconds_of_every_kind_of_target(database: Database) -> None:
    gates = {topic: Gate() for topic in ELSEWHERE}

    async def say(post: Post, writer: asyncio.StreamWriter) -> None:
        if post.name == "before":
            await gates["http"].passed()
        await say_ok(post, writer)

    topics = (*IN_DATABASE, *ELSEWHERE)
    with B(say) as service:
        open_topics(database, service.url)
        began_at = time.monotonic()
        for topic in topics:
            database.execute("SELECT inturn.append_many(%s, '{a,a}', '{insert,before}')", [topic])
        for change in (
            "UPDATE inturn.command_log SET created_at = created_at - interval '1 h'",
            "UPDATE inturn.ticket SET ready_at = ready_at - interval '1 h'",
            "DELETE FROM inturn.saved_pass",  # nothing but a test makes a key due in the past
        ):
            database.execute(change)
        with (
            shop.gate_shut(database) as shut,
            shop.at_work(database, handlers_at(gates), workers=len(IN_DATABASE)) as fleet,
        ):
            try:
                shop.wait_at_gate(database, len(IN_DATABASE))
                until(lambda: all(gate.standing for gate in gates.values()), "those outside at theirs")
                stands_from = time.monotonic()
                until(lambda: time.monotonic() - stands_from > STANDS_SECONDS, "they stand")
            finally:
                for gate in gates.values():
                    gate.open()
            shut.rollback()
            for topic in topics:
                wait_counted(fleet, topic, "applied", 2)
            samples, lasted = counted(fleet), time.monotonic() - began_at
    for topic in topics:
        # Of a SQL target: one value a batch.
        waits = 1 if topic.startswith("sql") else 2
        assert value(samples, topic, "wait_seconds_count") == waits, topic
        # How far the clocks are apart is known as well as a round trip tells.
        assert HOUR - lasted <= value(samples, topic, "wait_seconds_sum") / waits <= HOUR + lasted, topic
        assert value(samples, topic, "wait_seconds_bucket", le="1800.0") == 0, topic
        assert value(samples, topic, "wait_seconds_bucket", le="+Inf") == waits, topic
        assert value(samples, topic, "handler_seconds_count") == 2, topic
        assert STANDS_SECONDS <= value(samples, topic, "handler_seconds_sum") <= lasted, topic
        # Where one call takes both, each has its share.
        assert value(samples, topic, "handler_seconds_bucket", le="0.025") <= 1, topic
        assert value(samples, topic, "handler_seconds_bucket", le="1800.0") == 2, topic


def test_a_failed_attempt_is_time_of_a_handler_and_only_the_first_one_a_wait(database: Database) -> None:
    shop.open_shop(database, settings="max_attempts => 2, backoff_base => '10 ms'")
    for topic, target in (("sql", "sql:app.apply"), ("outside", "python")):
        database.execute(
            "SELECT inturn.create_topic(%s, %s, max_attempts => 2, backoff_base => '10 ms')", [topic, target]
        )
    handlers = Applier()

    @handlers.handler("shop")
    def fail_in_database(_: psycopg.Connection[object], command: Command) -> None:
        raise ValueError(command.key)

    @handlers.handler("outside", outside=True)
    def fail(command: Command) -> None:
        raise ValueError(command.key)

    for topic in ("shop", "sql", "outside"):
        database.execute("SELECT inturn.append(%s, 'a', 'fail')", [topic])
    with shop.at_work(database, handlers) as fleet:
        for topic in ("shop", "sql", "outside"):
            wait_counted(fleet, topic, "failed", 2)
        samples = counted(fleet)
    counts = [value(samples, topic, "handler_seconds_count") for topic in ("shop", "sql", "outside")]
    assert counts == [2, 2, 2]
    assert value(samples, "shop", "wait_seconds_count") == 1
    assert value(samples, "outside", "wait_seconds_count") == 1


def test_counters_begin_at_0_before_there_is_anything_to_count(database: Database) -> None:
    """Of one that begins with its first value, Prometheus sees no rise: the first failures would be lost."""
    shop.open_shop(database)
    for topic, target in (("sql", "sql:app.apply"), ("outside", "python")):
        database.execute("SELECT inturn.create_topic(%s, %s)", [topic, target])
    handlers = Applier()
    handlers.handler("shop")(shop.apply)
    handlers.handler("outside", outside=True)(lambda _: None)
    inside = ("claims_total", "turns_total", "empty_turns_total")
    outside = ("claims_total", "turns_total", "lost_leases_total")
    with shop.at_work(database, handlers) as fleet:
        for topic, names in (("shop", inside), ("sql", inside), ("outside", outside)):
            samples = wait_begun(fleet, topic)
            assert {sample(samples, f"inturn_applier_{name}", topic=topic) for name in names} == {0}, topic
            assert {
                sample(samples, "inturn_applier_commands_total", topic=topic, outcome=outcome)
                for outcome in ("applied", "failed", "skipped")
            } == {0}, topic
