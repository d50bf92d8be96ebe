"""Bad days of appliers over HTTP: each key in order as the service saw it, nothing lost, nothing late."""

from __future__ import annotations

import asyncio
import base64
import signal
import time
from datetime import UTC, datetime

import psycopg
import pytest
from support.b_server import (
    TOPIC,
    B,
    Gate,
    Post,
    answer,
    assert_in_turn,
    at_work,
    open_topic,
    put,
    put_keys,
    state,
    wait_applied,
)
from support.database import Database, until, wait_at_rest
from support.http_days import (
    LONG_LEASE,
    PATIENT,
    facts,
    held_back,
    posts_elsewhere,
    wait_fenced,
)
from support.lease_scenes import expire
from support.own_server import own_database
from support.process import inturn_apply, run_apply
from support.server import Server

from inturn.applier import Applier, Fleet, Timeouts
from inturn.applier.command import ClaimedCommand
from inturn.applier.http.effect import HttpEffect
from inturn.applier.outside.effect import LeaseOver
from inturn.applier.outside.leases import Lease


def test_an_applier_killed_between_the_answer_and_the_record_leaves_a_repeat(
    database: Database, b: B
) -> None:
    open_topic(database, b.url, LONG_LEASE)
    gate = Gate()
    b.say = held_back(gate)
    put(database, "a", "one", "two", "three")
    with posts_elsewhere(database) as process:
        until(lambda: gate.standing, "the post")
        lock = database.session()
        lock.execute("SELECT FROM inturn.ticket FOR UPDATE")
        gate.open()
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        until(lambda: database.value(waits), "it to record the answer")
        process.kill()
        until(lambda: not database.value(waits) or _kill_waiting(database), "its backend gone")
        lock.rollback()
    expire(database)
    with at_work(database):
        wait_applied(database)
    assert [(post.seq, post.attempt) for post in b.log] == [(1, 1), (1, 1), (2, 1), (3, 1)]
    assert_in_turn(database, b.log)
    outcome = "SELECT outcome FROM inturn.turn WHERE epoch = %s"
    assert database.execute(outcome, [b.log[0].epoch]) == [("lost",)]


def _kill_waiting(database: Database) -> bool:
    # A backend that waits for a lock does not notice that its client is gone.
    database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'inturn apply' AND wait_event_type = 'Lock'"
    )
    return False


@pytest.mark.parametrize("answered", [True, False])
def test_an_applier_stopped_past_its_lease_is_fenced_off_and_changes_nothing(
    database: Database, b: B, answered: bool
) -> None:
    """Its post is answered while it is stopped, or only after it goes on."""
    # It learns of its end when it renews its lease, after half of that; the others keep theirs.
    open_topic(database, b.url, "lease => '10 seconds', backoff_base => '10 ms'")
    gate = Gate()
    b.say = held_back(gate)
    put(database, "a", "one", "two", "three")
    with posts_elsewhere(database) as late:
        until(lambda: gate.standing, "the post")
        late.send(signal.SIGSTOP)
        wait_at_rest(database)  # a claim that it has sent would come after what follows
        if answered:
            gate.open()
        database.execute("SELECT inturn.set_topic('posts', lease => '1 hour')")
        expire(database)
        with at_work(database):
            wait_applied(database)
        before, seen = facts(database), len(b.log)
        assert seen == 4
        late.send(signal.SIGCONT)
        wait_fenced(late)
        gate.open()
        assert facts(database) == before
        put(database, "a", "four")
        wait_applied(database)
        assert [post.seq for post in b.log[seen:]] == [4], "it is fenced off from one turn, not out of work"
    assert_in_turn(database, b.log)


def test_work_on_a_key_stops_at_once_when_the_lease_is_found_gone(database: Database, b: B) -> None:
    open_topic(database, b.url, "lease => '5 seconds'")
    gate = Gate()
    b.say = held_back(gate)
    put(database, "a", "one", "two")
    with at_work(database, http_timeouts=PATIENT):
        until(lambda: gate.standing, "the post")
        database.execute("""
            DO $$ BEGIN
                UPDATE inturn.key_cursor SET ready_at = clock_timestamp(), lease_until = clock_timestamp();
                PERFORM inturn.claim('{posts}'::text[], 1, '1 hour', 'another');
            END $$""")
        before = facts(database)
        assert before[0][-1] == "another"
        epoch = database.value("SELECT epoch FROM inturn.key_cursor")
        until(lambda: b.hung_up(b.log[0]), "the request cancelled")
        gate.open()
        assert facts(database) == before
        database.execute("SELECT inturn.release('posts', 'a', %s)", [epoch])
        wait_applied(database)
    assert [post.seq for post in b.log] == [1, 1, 2]
    assert b.log[0].epoch < epoch < b.log[1].epoch
    assert_in_turn(database, b.log)


def test_a_lease_that_cannot_be_renewed_ends_its_work(database: Database, b: B) -> None:
    open_topic(database, b.url, "lease => '5 seconds'")
    gate = Gate()
    b.say = held_back(gate)
    put(database, "a", "one", "two")
    lock = database.session()
    with at_work(database, http_timeouts=PATIENT):
        until(lambda: gate.standing, "the post")
        lock.execute("SELECT FROM inturn.ticket FOR UPDATE")
        until(lambda: b.hung_up(b.log[0]), "the request cancelled when the lease could not be renewed")
        assert len(b.log) == 1
        lock.rollback()
        gate.open()
        wait_applied(database)
    assert_in_turn(database, b.log)


def test_nothing_is_sent_on_a_lease_that_ran_out_before_the_connection_was_there(b: B) -> None:
    now = datetime.now(UTC)
    order = ClaimedCommand(TOPIC, "a", 1, "one", "{}", now, 1, 1)

    async def post(seconds: float) -> object:
        lease = Lease(TOPIC, "a", 1, 1.0, time.monotonic() + seconds, 0.0, [order])
        effect = HttpEffect(b.url, None, Timeouts())
        try:
            return await effect.apply(order, lease)
        finally:
            await effect.close()

    assert asyncio.run(post(60)) is None
    with pytest.raises(LeaseOver):
        asyncio.run(post(-0.001))
    until(lambda: b.connections == 2, "the second connection, which B hears of in its own time")
    assert len(b.log) == 1


def test_the_clocks_of_two_appliers_do_not_matter(database: Database, b: B) -> None:
    open_topic(database, b.url, "lease => '10 seconds'")
    secret = "whsec_" + base64.b64encode(b"a secret of twenty-four b").decode()

    async def slow(post: Post, writer: asyncio.StreamWriter) -> None:
        # One key is in hand for longer than the others.
        await asyncio.sleep(6 if (post.key, post.seq) == ("k1", 1) else 0.01)
        writer.write(answer())

    b.say = slow
    put_keys(database, 20, 5)
    with (
        inturn_apply(database.dsn, app="support.late_clock:applier", INTURN_HTTP_SECRET=secret) as late,
        inturn_apply(database.dsn, app="support.early_clock:applier", INTURN_HTTP_SECRET=secret) as early,
    ):
        until(lambda: "applying" in late.err and "applying" in early.err, "both at work")
        put_keys(database, 20, 5)
        wait_applied(database)
        assert late.err[:13] < early.err[:13], "their clocks differ"
    assert_in_turn(database, b.log)
    assert len(b.log) == 200, "no lease was taken for over"
    now = datetime.now(UTC).timestamp()
    assert all(abs(int(post.headers["webhook-timestamp"]) - now) < 60 for post in b.log)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_the_database_restarts_while_a_hundred_posts_are_in_flight(server: Server, b: B, mode: str) -> None:
    gate = Gate()
    answered = 0

    async def wait(post: Post, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        if post.seq == 1:
            await gate.passed()
        writer.write(answer())
        answered += 1

    b.say = wait
    with own_database(server) as database:
        open_topic(database, b.url)
        put_keys(database, 100, 3)
        with posts_elsewhere(database) as process:
            until(lambda: gate.standing == 100, "a hundred posts")
            database.server.stop(mode)
            until(lambda: "lost the database" in process.err, "it to notice")
            gate.open()
            until(lambda: answered == 100, "all answers")
            database.server.start()
            until(lambda: _reconnected(database), "the server")
            wait_applied(database, 60)
            process.send(signal.SIGTERM)
            assert process.exit_code() == 0
        assert_in_turn(database, b.log)
        assert len(b.log) == 300, "what was answered meanwhile is recorded, not repeated"


def _reconnected(database: Database) -> bool:
    try:
        database.execute("SELECT")
    except psycopg.OperationalError:
        return False
    return True


# The end.


def test_a_stop_lets_the_post_in_hand_end_and_begins_no_further_one(database: Database, b: B) -> None:
    open_topic(database, b.url)
    gate = Gate()
    b.say = held_back(gate)
    put(database, "a", "one", "two")
    fleet = Fleet(database.applier_dsn, Applier())
    fleet.start()
    until(lambda: gate.standing, "the post")
    fleet.request_stop()
    gate.open()
    assert fleet.wait(60)
    outcome = fleet.end(0)
    assert (outcome.commands, outcome.failures, outcome.cut) == (1, 0, False)
    assert state(database, "a") == ("ready", 1, 0, None)
    assert database.execute("SELECT from_seq, to_seq, outcome FROM inturn.turn") == [(1, 1, "applied")]
    assert run_apply(database.dsn, "--drain", app=None)[0] == 0
    assert_in_turn(database, b.log)
    assert len(b.log) == 2


def test_when_the_grace_is_over_the_post_is_cut_off_and_its_key_is_free_at_once(
    database: Database, b: B
) -> None:
    open_topic(database, b.url, "lease => '1 hour'")
    gate = Gate()
    b.say = held_back(gate)
    put(database, "a", "one", "two")
    with posts_elsewhere(database) as process:
        until(lambda: gate.standing, "the post")
        process.send(signal.SIGTERM)
        process.send(signal.SIGINT)
        assert process.exit_code() == 6
    assert state(database, "a") == ("ready", 0, 0, None)
    gate.open()
    assert run_apply(database.dsn, "--drain", app=None)[0] == 0
    assert [(post.seq, post.attempt) for post in b.log] == [(1, 1), (1, 1), (2, 1)]
    assert_in_turn(database, b.log)


def test_an_idle_applier_without_a_database_stops_at_once(server: Server, b: B) -> None:
    with own_database(server) as database:
        open_topic(database, b.url)
        put(database, "a", "one")
        with posts_elsewhere(database) as process:
            wait_applied(database)
            database.server.stop("immediate")
            until(lambda: "lost the database" in process.err, "it to notice")
            process.send(signal.SIGTERM)
            assert process.exit_code() == 0
